#if canImport(CoreML)
import BitnetChat
import CoreML
import Foundation

/// A Core ML package of bitnet-onnx, or one with the same inputs, states and outputs.
///
/// One instance holds one sequence; use it from one task at a time, as `Generator` does.
public final class CoreMLLanguageModel: LanguageModel {
    public let contextLength: Int
    public let manifest: PackageManifest
    public private(set) var position = 0

    private let prefillFunction: Function
    private let decodeFunction: Function
    private let state: MLState
    private let longestQuery: Int

    /// Opens a package, compiling it first unless it is an `.mlmodelc`, as Xcode makes of packages in an app.
    ///
    /// Throws `BitnetError`: the package has not the expected form; and what Core ML throws.
    ///
    /// - Parameters:
    ///   - computeUnits: where it may run.
    ///   - longestQuery: most tokens of a prompt read at once. The logits of all of them are computed: for a vocabulary
    ///     of 128000, 128 tokens take 33 MB.
    public static func load(
        _ url: URL, computeUnits: MLComputeUnits = .all, longestQuery: Int = 128
    ) async throws -> sending CoreMLLanguageModel {
        guard longestQuery > 0 else { throw BitnetError.input("longestQuery is \(longestQuery), expected at least 1") }
        let compiled = url.pathExtension == "mlmodelc" ? url : try await MLModel.compileModel(at: url)
        let names = try await MLModelAsset(url: compiled).functionNames
        func open(_ function: String?) async throws -> Function {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = computeUnits
            if let function { configuration.functionName = function }
            return try Function(await MLModel.load(contentsOf: compiled, configuration: configuration))
        }
        guard names.contains(PackageNames.prefill), names.contains(PackageNames.decode) else {
            let function = try await open(nil)
            return try CoreMLLanguageModel(prefill: function, decode: function, longestQuery)
        }
        let prefill = try await open(PackageNames.prefill)
        return try CoreMLLanguageModel(prefill: prefill, decode: await open(PackageNames.decode), longestQuery)
    }

    private init(prefill: Function, decode: Function, _ longestQuery: Int) throws {
        let metadata = decode.model.modelDescription.metadata[MLModelMetadataKey.creatorDefinedKey] as? [String: String]
        manifest = try PackageManifest(metadata: metadata ?? [:])
        prefillFunction = prefill
        decodeFunction = decode
        contextLength = min(manifest.context ?? decode.keySizes.largest, decode.keySizes.largest)
        self.longestQuery = longestQuery
        // Both functions read and write the same state.
        state = decode.model.makeState()
    }

    public func rewind(to position: Int) {
        precondition(0...self.position ~= position, "no position \(position) in a cache of \(self.position)")
        // What lies behind is overwritten before it is read: a query sees the keys up to its own position.
        self.position = position
    }

    public func prefill(_ tokens: ArraySlice<Int>) throws -> [Float] {
        guard !tokens.isEmpty, position + tokens.count <= contextLength else {
            throw BitnetError.input("\(tokens.count) tokens do not fit at \(position) of a context of \(contextLength)")
        }
        var rest = tokens
        var logits: [Float] = []
        while !rest.isEmpty {
            try Task.checkCancellation()
            let most = min(rest.count, longestQuery)
            let inPrefill = most > 1 ? prefillFunction.querySizes.largest(upTo: most) : nil
            guard let count = inPrefill ?? decodeFunction.querySizes.largest(upTo: most) else {
                throw BitnetError.unsupported("the package cannot read \(most) tokens at once")
            }
            let function = inPrefill == nil ? decodeFunction : prefillFunction
            let last = count == rest.count
            // Core ML's results are released late without a pool of their own.
            logits = try autoreleasepool {
                try function.predict(rest.prefix(count), at: position, state: state, wantsLogits: last)
            }
            position += count
            rest = rest.dropFirst(count)
        }
        return logits
    }
}

/// One function of a package, and what it takes.
private struct Function {
    let model: MLModel
    let querySizes: AllowedSizes
    let keySizes: AllowedSizes
    private let maskType: MLMultiArrayDataType

    init(_ model: MLModel) throws {
        let description = model.modelDescription
        let inputs = description.inputDescriptionsByName
        guard let ids = inputs[PackageNames.inputIDs]?.multiArrayConstraint,
            let mask = inputs[PackageNames.causalMask]?.multiArrayConstraint
        else {
            throw Self.failure("inputs \(PackageNames.inputIDs) and \(PackageNames.causalMask)", inputs.keys)
        }
        guard description.outputDescriptionsByName[PackageNames.logits] != nil else {
            throw Self.failure("output \(PackageNames.logits)", description.outputDescriptionsByName.keys)
        }
        let states = description.stateDescriptionsByName
        guard states[PackageNames.keyCache] != nil, states[PackageNames.valueCache] != nil else {
            throw Self.failure("states \(PackageNames.keyCache) and \(PackageNames.valueCache)", states.keys)
        }
        guard ids.shape.count == 2, mask.shape.count == 4 else {
            throw BitnetError.unsupported(
                "\(PackageNames.inputIDs) has \(ids.shape.count) dimensions and \(PackageNames.causalMask) "
                    + "\(mask.shape.count), expected 2 and 4")
        }
        guard ids.dataType == .int32, mask.dataType == .float16 || mask.dataType == .float32 else {
            throw BitnetError.unsupported(
                "\(PackageNames.inputIDs) must be int32 and \(PackageNames.causalMask) float16 or float32")
        }
        self.model = model
        maskType = mask.dataType
        querySizes = Self.sizes(ids, dimension: 1)
        keySizes = Self.sizes(mask, dimension: 3)
    }

    private static func failure(_ expected: String, _ found: some Sequence<String>) -> BitnetError {
        .unsupported("the package has no \(expected), only \(found.sorted().joined(separator: ", "))")
    }

    private static func sizes(_ constraint: MLMultiArrayConstraint, dimension: Int) -> AllowedSizes {
        let flexible = constraint.shapeConstraint
        switch flexible.type {
        case .range where dimension < flexible.sizeRangeForDimension.count:
            // The length counts both ends.
            let range = flexible.sizeRangeForDimension[dimension].rangeValue
            let (upper, overflows) = range.location.addingReportingOverflow(max(range.length, 1) - 1)
            return AllowedSizes(range.location...(overflows ? Int.max : upper))
        case .enumerated: return AllowedSizes(flexible.enumeratedShapes.map { $0[dimension].intValue })
        default: return AllowedSizes([constraint.shape[dimension].intValue])
        }
    }

    /// Reads tokens at `position`; the logits after the last, or nothing where they are not wanted.
    func predict(_ tokens: ArraySlice<Int>, at position: Int, state: MLState, wantsLogits: Bool) throws -> [Float] {
        let inputs = try MLDictionaryFeatureProvider(dictionary: [
            PackageNames.inputIDs: MLFeatureValue(multiArray: try ids(tokens)),
            PackageNames.causalMask: MLFeatureValue(multiArray: try mask(query: tokens.count, position: position)),
        ])
        let outputs = try model.prediction(from: inputs, using: state)
        guard let logits = outputs.featureValue(for: PackageNames.logits)?.multiArrayValue else {
            throw BitnetError.model("the model gave no \(PackageNames.logits)")
        }
        return wantsLogits ? try lastRow(logits) : []
    }

    private func ids(_ tokens: ArraySlice<Int>) throws -> MLMultiArray {
        let array = try MLMultiArray(shape: [1, NSNumber(value: tokens.count)], dataType: .int32)
        try array.withUnsafeMutableBytes { bytes, strides in
            for (index, token) in tokens.enumerated() {
                guard let id = Int32(exactly: token), id >= 0 else {
                    throw BitnetError.input("\(token) is no token id")
                }
                bytes.storeBytes(of: id, toByteOffset: index * strides[1] * 4, as: Int32.self)
            }
        }
        return array
    }

    /// 0 where a query sees a key, the lowest half float where it does not. Packages of bitnet-onnx know without it.
    private func mask(query: Int, position: Int) throws -> MLMultiArray {
        let shape = [1, 1, query, position + query]
        let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: maskType)
        array.withUnsafeMutableBytes { bytes, strides in
            for row in 0..<query {
                for column in 0..<position + query {
                    let at = row * strides[2] + column * strides[3]
                    let seen = column <= position + row
                    if maskType == .float16 {
                        bytes.storeBytes(of: seen ? 0 : 0xFBFF, toByteOffset: at * 2, as: UInt16.self)
                    } else {
                        bytes.storeBytes(of: seen ? 0 : -65504, toByteOffset: at * 4, as: Float.self)
                    }
                }
            }
        }
        return array
    }

    private func lastRow(_ logits: MLMultiArray) throws -> [Float] {
        let shape = logits.shape.map(\.intValue)
        let strides = logits.strides.map(\.intValue)
        guard shape.count == 3, shape[1] > 0 else {
            throw BitnetError.model("\(PackageNames.logits) has the shape \(shape), expected three dimensions")
        }
        let start = (shape[1] - 1) * strides[1]
        return try logits.withUnsafeBytes { bytes in
            switch logits.dataType {
            case .float16:
                (0..<shape[2]).map {
                    float(half: bytes.loadUnaligned(fromByteOffset: (start + $0 * strides[2]) * 2, as: UInt16.self))
                }
            case .float32:
                (0..<shape[2]).map {
                    bytes.loadUnaligned(fromByteOffset: (start + $0 * strides[2]) * 4, as: Float.self)
                }
            default: throw BitnetError.model("\(PackageNames.logits) is neither float16 nor float32")
            }
        }
    }
}
#endif
