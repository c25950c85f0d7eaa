// The part of Core ML that the package calls, with Apple's signatures, for platforms without it.
import Foundation

public enum MLMultiArrayDataType: Sendable {
    case float16, float32, int32, double

    var bytes: Int {
        switch self {
        case .float16: 2
        case .float32, .int32: 4
        case .double: 8
        }
    }
}

/// Rows are padded and new memory holds garbage, so that code which assumes neither is told from code which does.
public final class MLMultiArray {
    public let shape: [NSNumber]
    public let strides: [NSNumber]
    public let dataType: MLMultiArrayDataType
    private let memory: UnsafeMutableRawBufferPointer

    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {
        self.shape = shape
        self.dataType = dataType
        var stride = 1
        var strides: [Int] = []
        for size in shape.reversed() {
            strides.insert(stride, at: 0)
            stride *= size.intValue + (strides.count == 1 ? 3 : 0)
        }
        self.strides = strides.map { NSNumber(value: $0) }
        memory = .allocate(byteCount: max(stride, 1) * dataType.bytes, alignment: 16)
        memory.initializeMemory(as: UInt8.self, repeating: 0xAA)
    }

    deinit { memory.deallocate() }

    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try body(UnsafeRawBufferPointer(memory))
    }

    public func withUnsafeMutableBytes<R>(_ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R) rethrows -> R {
        try body(memory, strides.map(\.intValue))
    }
}

public final class MLFeatureValue {
    public let multiArrayValue: MLMultiArray?

    public init(multiArray: MLMultiArray) { multiArrayValue = multiArray }
}

public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    private let values: [String: MLFeatureValue]

    public init(dictionary: [String: Any]) throws {
        values = dictionary.compactMapValues { $0 as? MLFeatureValue }
        guard values.count == dictionary.count else { throw CocoaError(.featureUnsupported) }
    }

    public var featureNames: Set<String> { Set(values.keys) }

    public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

public func autoreleasepool<Result>(invoking body: () throws -> Result) rethrows -> Result { try body() }
