import Foundation

/// What a Core ML package of bitnet-onnx calls its parts.
public enum PackageNames {
    /// int32 [1, query]
    public static let inputIDs = "inputIds"
    /// float [1, 1, query, key], where key counts the tokens in the cache and those of the query
    public static let causalMask = "causalMask"
    public static let keyCache = "keyCache"
    public static let valueCache = "valueCache"
    /// float [1, query, vocabulary]
    public static let logits = "logits"
    /// The functions of packages that have several.
    public static let prefill = "prefill"
    public static let decode = "decode"
    /// Metadata: the model's name, and JSON with its sizes.
    public static let modelName = "co.huggingface.exporters.name"
    public static let manifest = "com.github.bitnet-onnx.manifest"
    /// `NAME.mlpackage` has its tokenizer in the directory `NAME.tokenizer` beside it.
    public static func tokenizerDirectory(of package: URL) -> URL {
        package.deletingPathExtension().appendingPathExtension("tokenizer")
    }
}

/// What is read of a package's metadata; empty for a package of others.
public struct PackageManifest: Sendable, Equatable {
    public let modelName: String?
    /// Positions that the cache has room for.
    public let context: Int?

    /// Throws `BitnetError`: the manifest is no JSON, or of a later format.
    public init(metadata: [String: String]) throws {
        modelName = metadata[PackageNames.modelName]
        guard let text = metadata[PackageNames.manifest] else {
            context = nil
            return
        }
        let json = try JSON.parse(Array(text.utf8), name: "the package's manifest")
        guard let format = json["format"]?.int, format == 1 else {
            throw BitnetError.unsupported(
                "the package's manifest is not of format 1: take a newer version of this code")
        }
        guard let context = json["context"]?.int, context > 0 else {
            throw BitnetError.file("the package's manifest names no context")
        }
        self.context = context
    }
}

/// The sizes that one dimension of an input may have.
public struct AllowedSizes: Sendable, Equatable {
    private let ranges: [ClosedRange<Int>]

    public init(_ range: ClosedRange<Int>) { ranges = [range] }

    public init(_ sizes: [Int]) { ranges = sizes.map { $0...$0 } }

    public var largest: Int { ranges.map(\.upperBound).max() ?? 0 }

    /// The largest size of at most `count`.
    public func largest(upTo count: Int) -> Int? {
        ranges.compactMap { $0.lowerBound <= count ? min($0.upperBound, count) : nil }.max()
    }
}
