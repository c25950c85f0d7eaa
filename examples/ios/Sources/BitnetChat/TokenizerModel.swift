import Foundation

extension Tokenizer {
    /// The member `model` of tokenizer.json: a vocabulary and the merges of its pairs.
    struct Model: Sendable {
        /// Ids and texts, as they stand in the file.
        let tokens: [(id: Int, text: String)]
        let largestID: Int

        private let ids: [[UInt8]: Int]
        private let pairs: BytePairs
        private let onBytes: Bool
        private let ignoresMerges: Bool
        private let unknown: Int?
        private let fusesUnknown: Bool
        /// Ids of the 256 bytes, for characters that the vocabulary lacks.
        private let fallback: [Int?]

        init(_ json: JSON, onBytes: Bool) throws {
            let type = json["type"]?.string ?? "BPE"
            guard type == "BPE", let vocabulary = json["vocab"]?.members else {
                throw BitnetError.unsupported("tokenizer.json has a model that is not covered: \(type)")
            }
            for name in ["continuing_subword_prefix", "end_of_word_suffix"] where json[name]?.string?.isEmpty == false {
                throw BitnetError.unsupported("tokenizer.json has \(name), which is not covered")
            }
            guard json["dropout"]?.present == nil else {
                throw BitnetError.unsupported("tokenizer.json has dropout, which is for training")
            }
            self.onBytes = onBytes
            var tokens: [(id: Int, text: String)] = []
            var ids: [[UInt8]: Int] = [:]
            tokens.reserveCapacity(vocabulary.count)
            ids.reserveCapacity(vocabulary.count)
            for (text, value) in vocabulary {
                guard let id = value.int, id >= 0 else {
                    throw BitnetError.file("tokenizer.json has a token without an id: \(text)")
                }
                tokens.append((id, text))
                ids[Self.key(text, onBytes)] = id
            }
            self.tokens = tokens
            self.ids = ids
            largestID = tokens.map(\.id).max() ?? 0
            pairs = try Self.pairs(json["merges"]?.array ?? [], ids, onBytes)
            ignoresMerges = json["ignore_merges"]?.bool ?? false
            unknown = json["unk_token"]?.string.flatMap { ids[Self.key($0, onBytes)] }
            fusesUnknown = json["fuse_unk"]?.bool ?? false
            let falls = json["byte_fallback"]?.bool ?? false
            fallback = (0..<256).map { byte in falls ? ids[Array(byteName(UInt8(byte)).utf8)] : nil }
        }

        /// What a token is looked up by: the bytes that it stands for.
        private static func key(_ text: String, _ onBytes: Bool) -> [UInt8] {
            onBytes ? ByteAlphabet.bytes(of: text) ?? Array(text.utf8) : Array(text.utf8)
        }

        private static func pairs(_ rules: [JSON], _ ids: [[UInt8]: Int], _ onBytes: Bool) throws -> BytePairs {
            var pairs = BytePairs(capacity: rules.count)
            for (rank, rule) in rules.enumerated() {
                // Two texts, or in older files one with a space between.
                let halves =
                    rule.string.map { $0.split(separator: " ").map(String.init) }
                    ?? rule.array?.compactMap(\.string) ?? []
                guard halves.count == 2 else { throw BitnetError.file("merge \(rank) of tokenizer.json is no pair") }
                let left = key(halves[0], onBytes)
                let right = key(halves[1], onBytes)
                guard let leftID = ids[left], let rightID = ids[right], let result = ids[left + right] else {
                    throw BitnetError.file("merge \(rank) of tokenizer.json names a token that is not there")
                }
                pairs.add(leftID, rightID, rank: rank, result: result)
            }
            return pairs
        }

        func id(ofToken text: String) -> Int? { ids[Self.key(text, onBytes)] }

        /// The ids of one word.
        func encode(_ word: String) -> [Int] {
            let bytes = Array(word.utf8)
            if ignoresMerges, let id = ids[bytes] { return [id] }
            return pairs.merge(onBytes ? bytes.compactMap { ids[[$0]] } : characters(word))
        }

        private func characters(_ word: String) -> [Int] {
            var found: [Int] = []
            var afterUnknown = false
            for scalar in word.unicodeScalars {
                let bytes = Array(String(scalar).utf8)
                if let id = ids[bytes] {
                    found.append(id)
                    afterUnknown = false
                    continue
                }
                let fallen = bytes.compactMap { fallback[Int($0)] }
                if fallen.count == bytes.count {
                    found += fallen
                    afterUnknown = false
                } else if let unknown {
                    if !(fusesUnknown && afterUnknown) { found.append(unknown) }
                    afterUnknown = true
                }
            }
            return found
        }
    }

    /// The member `decoder` of tokenizer.json: what the text of a token stands for.
    struct Decoder: Sendable {
        private let onBytes: Bool
        private var replacements: [(from: String, to: String)] = []
        private var fallsBack = false
        private(set) var strippedSpaces = 0

        init(_ json: JSON?, onBytes: Bool) throws {
            self.onBytes = onBytes
            try add(json)
        }

        private mutating func add(_ json: JSON?) throws {
            guard let json = json?.present else { return }
            let type = json["type"]?.string ?? ""
            switch type {
            case "ByteLevel" where onBytes: return
            case "Fuse": return
            case "ByteFallback": fallsBack = true
            case "Sequence": for step in json["decoders"]?.array ?? [] { try add(step) }
            case "Replace":
                guard let from = json["pattern"]?["String"]?.string, let to = json["content"]?.string else { break }
                replacements.append((from, to))
                return
            case "Metaspace":
                replacements.append((json["replacement"]?.string ?? "\u{2581}", " "))
                if json["prepend_scheme"]?.string != "never", json["add_prefix_space"]?.bool != false {
                    strippedSpaces = 1
                }
                return
            case "Strip":
                guard json["content"]?.string == " ", let start = json["start"]?.int, json["stop"]?.int ?? 0 == 0 else {
                    break
                }
                strippedSpaces = start
                return
            default: break
            }
            if type != "ByteFallback", type != "Sequence" {
                throw BitnetError.unsupported("tokenizer.json has a decoder that is not covered: \(type)")
            }
        }

        func bytes(of text: String) -> [UInt8] {
            if onBytes { return ByteAlphabet.bytes(of: text) ?? Array(text.utf8) }
            if fallsBack, let byte = byte(named: text) { return [byte] }
            return Array(
                replacements.reduce(text) { text, rule in
                    text.replacingOccurrences(of: rule.from, with: rule.to, options: .literal)
                }.utf8)
        }
    }
}

/// The text of the token that stands for a byte.
private func byteName(_ byte: UInt8) -> String {
    let digits = String(byte, radix: 16, uppercase: true)
    return "<0x\(digits.count < 2 ? "0" : "")\(digits)>"
}

private func byte(named text: String) -> UInt8? {
    guard text.utf8.count == 6, text.hasPrefix("<0x"), text.hasSuffix(">") else { return nil }
    return UInt8(text.dropFirst(3).dropLast(), radix: 16)
}

/// The characters that byte-level vocabularies write for bytes: printable ones for themselves, the others from U+0100.
enum ByteAlphabet {
    private static let byScalar: [UInt32: UInt8] = {
        var table: [UInt32: UInt8] = [:]
        var hidden: UInt32 = 0x100
        for byte in UInt8.min...UInt8.max {
            switch byte {
            case 0x21...0x7E, 0xA1...0xAC, 0xAE...0xFF: table[UInt32(byte)] = byte
            default:
                table[hidden] = byte
                hidden += 1
            }
        }
        return table
    }()

    /// The bytes that `text` stands for; nil if it has a character that stands for none.
    static func bytes(of text: String) -> [UInt8]? {
        var bytes: [UInt8] = []
        for scalar in text.unicodeScalars {
            guard let byte = byScalar[scalar.value] else { return nil }
            bytes.append(byte)
        }
        return bytes
    }
}
