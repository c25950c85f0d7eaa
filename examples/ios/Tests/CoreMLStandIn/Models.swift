import Foundation

public enum MLMultiArrayShapeConstraintType: Int { case unspecified = 1, enumerated, range }

public final class MLMultiArrayShapeConstraint {
    public let type: MLMultiArrayShapeConstraintType
    public let sizeRangeForDimension: [NSValue]
    public let enumeratedShapes: [[NSNumber]]

    init(_ ranges: [NSRange]) {
        type = .range
        sizeRangeForDimension = ranges.map { NSValue(range: $0) }
        enumeratedShapes = []
    }

    init(shapes: [[Int]]) {
        type = .enumerated
        sizeRangeForDimension = []
        enumeratedShapes = shapes.map { $0.map { NSNumber(value: $0) } }
    }

    init() {
        type = .unspecified
        sizeRangeForDimension = []
        enumeratedShapes = []
    }
}

public final class MLMultiArrayConstraint {
    public let shape: [NSNumber]
    public let dataType: MLMultiArrayDataType
    public let shapeConstraint: MLMultiArrayShapeConstraint

    init(_ shape: [Int], _ dataType: MLMultiArrayDataType, _ constraint: MLMultiArrayShapeConstraint) {
        self.shape = shape.map { NSNumber(value: $0) }
        self.dataType = dataType
        shapeConstraint = constraint
    }
}

public final class MLFeatureDescription {
    public let multiArrayConstraint: MLMultiArrayConstraint?

    init(_ constraint: MLMultiArrayConstraint? = nil) { multiArrayConstraint = constraint }
}

public struct MLModelMetadataKey: Hashable, RawRepresentable, Sendable {
    public let rawValue: String

    public init(rawValue: String) { self.rawValue = rawValue }

    public static let creatorDefinedKey = MLModelMetadataKey(rawValue: "MLModelCreatorDefinedKey")
}

public final class MLModelDescription {
    public internal(set) var inputDescriptionsByName: [String: MLFeatureDescription] = [:]
    public internal(set) var outputDescriptionsByName: [String: MLFeatureDescription] = [:]
    public internal(set) var stateDescriptionsByName: [String: MLFeatureDescription] = [:]
    public internal(set) var metadata: [MLModelMetadataKey: Any] = [:]
}

public enum MLComputeUnits: Int, Sendable { case cpuOnly = 0, cpuAndGPU, all, cpuAndNeuralEngine }

public final class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public var functionName: String?

    public init() {}
}

/// The tokens that a cache holds, by position.
public final class MLState {
    var tokens: [Int32?]

    init(_ context: Int) { tokens = [Int32?](repeating: nil, count: context) }
}

public final class MLModelAsset {
    private let url: URL

    public init(url: URL) throws { self.url = url }

    public var functionNames: [String] { get async throws { StandIn.at(url).functions } }
}

public final class MLModel {
    public let modelDescription: MLModelDescription
    private let standIn: StandIn
    private let functionName: String?

    private init(_ standIn: StandIn, _ functionName: String?) {
        self.standIn = standIn
        self.functionName = functionName
        modelDescription = standIn.description(functionName)
    }

    public static func compileModel(at url: URL) async throws -> URL {
        url.deletingPathExtension().appendingPathExtension("mlmodelc")
    }

    public static func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLModel {
        let standIn = StandIn.at(url)
        guard configuration.functionName.map(standIn.functions.contains) ?? true else {
            throw CocoaError(.featureUnsupported)
        }
        return MLModel(standIn, configuration.functionName)
    }

    public func makeState() -> MLState { MLState(standIn.context) }

    public func prediction(from input: any MLFeatureProvider, using state: MLState) throws -> any MLFeatureProvider {
        try standIn.predict(input, state, functionName)
    }

    public func prediction(
        from input: any MLFeatureProvider, using state: MLState, options: MLPredictionOptions = MLPredictionOptions()
    ) async throws -> any MLFeatureProvider {
        try standIn.predict(input, state, functionName)
    }
}

public final class MLPredictionOptions {
    public init() {}
}
