import Foundation

/// What a stand-in package is like, and a model whose logits tell which tokens it saw at which positions.
///
/// The logits after a token are those of a fixed linear function of all tokens up to it: every one that is missing, in
/// another place or stale changes them. The file name chooses the form; a test sets it up with `register`.
public struct StandIn: Sendable {
    public var context = 32
    public var vocabulary = 16
    public var functions: [String] = []
    /// Queries that the function `prefill` takes; nil: any.
    public var prefillSizes: [Int]?
    public var metadata: [String: String] = [:]
    public var maskType = MLMultiArrayDataType.float16
    public var logitsType = MLMultiArrayDataType.float16
    /// A name of an input, an output or a state that is left out.
    public var missing: String?

    public init() {}

    private static let lock = NSLock()
    nonisolated(unsafe) private static var known: [String: StandIn] = [:]
    nonisolated(unsafe) private static var queries: [String: [Int]] = [:]

    public static func register(_ name: String, _ standIn: StandIn) { lock.withLock { known[name] = standIn } }

    /// Sizes of the queries so far, by function.
    public static func log(_ function: String) -> [Int] { lock.withLock { queries[function] ?? [] } }

    public static func clearLog() { lock.withLock { queries = [:] } }

    static func at(_ url: URL) -> StandIn {
        lock.withLock { known[url.deletingPathExtension().lastPathComponent] ?? StandIn() }
    }

    /// The logits after `tokens`: small integers, so that half floats hold them.
    public func logits(after tokens: [Int]) -> [Float] {
        var logits = [Float](repeating: 0, count: vocabulary)
        for (position, token) in tokens.enumerated() {
            logits[(token + position) % vocabulary] += Float(position % 3 + 1)
            logits[(token * 5 + 1) % vocabulary] += 2
        }
        return logits
    }

    func description(_ function: String?) -> MLModelDescription {
        let description = MLModelDescription()
        let any = NSRange(location: 1, length: context)
        let sizes = function == "prefill" ? prefillSizes : nil
        let one = NSRange(location: 1, length: 1)
        let query = function == "decode" ? one : any
        let ids =
            sizes.map { sizes in
                sizes.count == 1
                    ? MLMultiArrayShapeConstraint() : MLMultiArrayShapeConstraint(shapes: sizes.map { [1, $0] })
            } ?? MLMultiArrayShapeConstraint([one, query])
        let mask = MLMultiArrayShapeConstraint([one, one, query, any])
        description.inputDescriptionsByName = [
            "inputIds": MLFeatureDescription(MLMultiArrayConstraint([1, sizes?.first ?? 1], .int32, ids)),
            "causalMask": MLFeatureDescription(MLMultiArrayConstraint([1, 1, 1, 1], maskType, mask)),
        ]
        description.outputDescriptionsByName = ["logits": MLFeatureDescription()]
        description.stateDescriptionsByName = [
            "keyCache": MLFeatureDescription(), "valueCache": MLFeatureDescription(),
        ]
        description.metadata = [.creatorDefinedKey: metadata]
        if let missing {
            description.inputDescriptionsByName[missing] = nil
            description.outputDescriptionsByName[missing] = nil
            description.stateDescriptionsByName[missing] = nil
        }
        return description
    }

    func predict(_ input: any MLFeatureProvider, _ state: MLState, _ function: String?) throws -> any MLFeatureProvider
    {
        guard input.featureNames == ["inputIds", "causalMask"],
            let ids = input.featureValue(for: "inputIds")?.multiArrayValue,
            let mask = input.featureValue(for: "causalMask")?.multiArrayValue, mask.dataType == maskType
        else { throw CocoaError(.featureUnsupported) }
        let query = ids.shape[1].intValue
        let key = mask.shape[3].intValue
        let position = key - query
        guard ids.dataType == .int32, ids.shape.count == 2, mask.shape.map(\.intValue) == [1, 1, query, key],
            position >= 0, key <= context, function != "decode" || query == 1,
            function != "prefill" || prefillSizes?.contains(query) ?? true
        else { throw CocoaError(.featureUnsupported) }
        Self.lock.withLock { Self.queries[function ?? "", default: []].append(query) }
        let given: [Int32] = ids.withUnsafeMutableBytes { bytes, strides in
            (0..<query).map { bytes.load(fromByteOffset: $0 * strides[1] * 4, as: Int32.self) }
        }
        for (index, token) in given.enumerated() { state.tokens[position + index] = token }
        let result = try MLMultiArray(
            shape: [1, NSNumber(value: query), NSNumber(value: vocabulary)], dataType: logitsType)
        for row in 0..<query {
            let seen = (0..<key).filter { value(mask, row, $0) == 0 }
            guard seen == Array(0...position + row) else { throw CocoaError(.featureUnsupported) }
            let tokens = seen.map { Int(state.tokens[$0] ?? -1) }
            guard !tokens.contains(-1) else { throw CocoaError(.featureUnsupported) }
            store(logits(after: tokens), row, result)
        }
        return try MLDictionaryFeatureProvider(dictionary: ["logits": MLFeatureValue(multiArray: result)])
    }

    private func value(_ mask: MLMultiArray, _ row: Int, _ column: Int) -> Float {
        mask.withUnsafeMutableBytes { bytes, strides in
            let at = row * strides[2] + column * strides[3]
            if maskType == .float32 { return bytes.load(fromByteOffset: at * 4, as: Float.self) }
            let bits = bytes.load(fromByteOffset: at * 2, as: UInt16.self)
            return bits == 0 ? 0 : bits == 0xFBFF ? -65504 : .nan
        }
    }

    private func store(_ logits: [Float], _ row: Int, _ array: MLMultiArray) {
        array.withUnsafeMutableBytes { bytes, strides in
            for (token, logit) in logits.enumerated() {
                let at = row * strides[1] + token * strides[2]
                switch logitsType {
                case .float16: bytes.storeBytes(of: half(logit), toByteOffset: at * 2, as: UInt16.self)
                default: bytes.storeBytes(of: logit, toByteOffset: at * 4, as: Float.self)
                }
            }
        }
    }

    /// Exact for whole numbers from 0 to 2048.
    private func half(_ value: Float) -> UInt16 {
        value == 0 ? 0 : UInt16((value.bitPattern >> 13) - (112 << 10))
    }
}
