import Foundation

/// Text to token ids and back, by the tokenizer.json of Hugging Face's `tokenizers`.
///
/// Covered is byte pair encoding: on bytes, as GPT-2, Llama 3, Qwen, SmolLM and BitNet have it, and on characters with
/// byte fallback, as Llama 2, TinyLlama and Gemma have it. Everything else is refused by name.
public struct Tokenizer: Sendable {
    /// One more than the largest id.
    public let vocabularySize: Int
    /// The members of tokenizer_config.json that are used.
    public let configuration: TokenizerConfiguration

    private let model: Model
    private let normalizers: [Normalizer]
    private let preTokenizers: [PreTokenizer]
    private let rawAdded: AddedTokens
    private let normalizedAdded: AddedTokens
    private let specialIDs: Set<Int>
    private let addedIDs: [[UInt8]: Int]
    /// What stands before and after a text.
    private let prefix: [Int]
    private let suffix: [Int]
    /// What each id stands for in a text, and spaces that are taken from its beginning.
    private let pieces: [[UInt8]?]
    private let strippedSpaces: Int

    /// Reads tokenizer.json and, if it is there, tokenizer_config.json of a directory.
    ///
    /// Throws `BitnetError`: a file is missing or broken, or asks for what is not covered.
    public init(directory: URL) throws {
        let configURL = directory.appendingPathComponent("tokenizer_config.json")
        let config = FileManager.default.fileExists(atPath: configURL.path) ? try JSON.read(configURL) : .object([])
        let templateURL = directory.appendingPathComponent("chat_template.jinja")
        let template = try? String(contentsOf: templateURL, encoding: .utf8)
        try self.init(
            JSON.read(directory.appendingPathComponent("tokenizer.json")),
            configuration: TokenizerConfiguration(config, template: template)
        )
    }

    init(_ json: JSON, configuration: TokenizerConfiguration) throws {
        self.configuration = configuration
        let added = try (json["added_tokens"]?.array ?? []).map(AddedToken.init)
        let normalizers = try Normalizer.steps(json["normalizer"])
        self.normalizers = normalizers
        preTokenizers = try PreTokenizer.steps(json["pre_tokenizer"])
        rawAdded = AddedTokens(added.filter { !$0.normalized })
        normalizedAdded = AddedTokens(added.filter(\.normalized)) { token in
            normalizers.reduce(token.content) { $1.apply($0) }
        }
        specialIDs = Set(added.filter(\.special).map(\.id))
        addedIDs = Dictionary(added.map { (Array($0.content.utf8), $0.id) }, uniquingKeysWith: { $1 })
        let onBytes = Self.mentions("ByteLevel", in: json["pre_tokenizer"])
        model = try Model(json["model"] ?? .null, onBytes: onBytes)
        (prefix, suffix) = try Self.frame(json["post_processor"])
        let decoder = try Decoder(json["decoder"], onBytes: onBytes)
        strippedSpaces = decoder.strippedSpaces
        let largest = max(model.largestID, added.map(\.id).max() ?? 0)
        guard largest < 1 << 22 else { throw BitnetError.file("tokenizer.json has the id \(largest), above 4194303") }
        vocabularySize = largest + 1
        var pieces = [[UInt8]?](repeating: nil, count: vocabularySize)
        for (id, text) in model.tokens { pieces[id] = decoder.bytes(of: text) }
        for token in added { pieces[token.id] = decoder.bytes(of: token.content) }
        self.pieces = pieces
    }

    /// The id of the token whose text is exactly `text`.
    public func id(of text: String) -> Int? {
        addedIDs[Array(text.utf8)] ?? model.id(ofToken: text)
    }

    /// Whether a token marks something rather than standing for text.
    public func isSpecial(_ id: Int) -> Bool { specialIDs.contains(id) }

    /// The ids of a text.
    ///
    /// - Parameters:
    ///   - parsesSpecial: whether the text of a special token becomes that token. False for what users type.
    ///   - framed: adds what tokenizer.json and `add_bos_token` put around a text. False within a chat.
    public func encode(_ text: String, parsesSpecial: Bool = false, framed: Bool = true) -> [Int] {
        var ids = encode(parts: rawAdded.split(text, special: parsesSpecial), special: parsesSpecial)
        guard framed else { return ids }
        ids = prefix + ids + suffix
        if configuration.addsBeginning, let text = configuration.beginning, let beginning = id(of: text),
            ids.first != beginning
        {
            ids.insert(beginning, at: 0)
        }
        return ids
    }

    /// The ids of one text of which some tokens are known already.
    func encode(parts: [AddedTokens.Part], special: Bool = false) -> [Int] {
        var ids: [Int] = []
        var first = true
        for part in parts {
            switch part {
            case .token(let id): ids.append(id)
            case .text(let text):
                let normal = normalizers.reduce(text) { $1.apply($0) }
                for part in normalizedAdded.split(normal, special: special) {
                    switch part {
                    case .token(let id): ids.append(id)
                    case .text(let text): ids += words(text, first: first).flatMap(model.encode)
                    }
                    first = false
                }
            }
            first = false
        }
        return ids
    }

    private func words(_ text: String, first: Bool) -> [String] {
        var pieces = [text]
        for step in preTokenizers {
            var isFirst = first
            pieces = pieces.flatMap { piece in
                defer { isFirst = false }
                return step.apply(piece, first: isFirst)
            }
        }
        return pieces
    }

    /// The text of ids without special tokens; what is no UTF-8 becomes U+FFFD.
    public func decode(_ ids: [Int]) -> String {
        var stream = TextStream(self)
        return ids.reduce("") { $0 + stream.append($1) } + stream.finish()
    }

    /// The bytes that a token adds to a text; none for special and unknown ones.
    func bytes(of id: Int, first: Bool) -> ArraySlice<UInt8> {
        guard pieces.indices.contains(id), !specialIDs.contains(id), let piece = pieces[id] else { return [] }
        guard first else { return piece[...] }
        return piece.dropFirst(piece.prefix(strippedSpaces).prefix { $0 == UInt8(ascii: " ") }.count)
    }

    private static func mentions(_ type: String, in json: JSON?) -> Bool {
        json?["type"]?.string == type || (json?["pretokenizers"]?.array ?? []).contains { mentions(type, in: $0) }
    }

    /// Ids before and after a text, from the post-processor.
    private static func frame(_ json: JSON?) throws -> ([Int], [Int]) {
        guard let json = json?.present else { return ([], []) }
        let type = json["type"]?.string ?? ""
        switch type {
        case "ByteLevel": return ([], [])
        case "Sequence":
            return try (json["processors"]?.array ?? []).map { try frame($0) }
                .reduce(([], [])) { ($1.0 + $0.0, $0.1 + $1.1) }
        case "TemplateProcessing":
            var before: [Int] = []
            var after: [Int] = []
            var seen = false
            for item in json["single"]?.array ?? [] {
                if item["Sequence"] != nil { seen = true }
                guard let name = item["SpecialToken"]?["id"]?.string else { continue }
                let ids = json["special_tokens"]?[name]?["ids"]?.array?.compactMap(\.int) ?? []
                if seen { after += ids } else { before += ids }
            }
            return (before, after)
        default: throw BitnetError.unsupported("tokenizer.json has a post-processor that is not covered: \(type)")
        }
    }
}

/// What is read of tokenizer_config.json.
public struct TokenizerConfiguration: Sendable {
    /// Text of the token that begins a text.
    public let beginning: String?
    /// Text of the token that ends one.
    public let end: String?
    /// Whether `beginning` stands before each text.
    public let addsBeginning: Bool
    /// The chat template, in Jinja.
    public let chatTemplate: String?

    init(_ json: JSON, template: String? = nil) {
        beginning = Self.token(json["bos_token"])
        end = Self.token(json["eos_token"])
        addsBeginning = json["add_bos_token"]?.bool ?? false
        chatTemplate = template ?? json["chat_template"]?.string
    }

    private static func token(_ json: JSON?) -> String? { json?.string ?? json?["content"]?.string }
}
