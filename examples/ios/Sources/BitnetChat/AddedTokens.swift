import Foundation

/// A token that is looked for in the text itself, before anything else.
struct AddedToken: Sendable {
    let id: Int
    let content: String
    let special: Bool
    let normalized: Bool
    let stripsLeft: Bool
    let stripsRight: Bool

    init(_ json: JSON) throws {
        guard let id = json["id"]?.int, id >= 0, let content = json["content"]?.string, !content.isEmpty else {
            throw BitnetError.file("tokenizer.json has an added token without id or content")
        }
        guard json["single_word"]?.bool != true else {
            throw BitnetError.unsupported("tokenizer.json has an added token with single_word: \(content)")
        }
        self.id = id
        self.content = content
        special = json["special"]?.bool ?? false
        normalized = json["normalized"]?.bool ?? !special
        stripsLeft = json["lstrip"]?.bool ?? false
        stripsRight = json["rstrip"]?.bool ?? false
    }
}

/// Finds added tokens in texts: the leftmost, and the longest of those that begin there.
struct AddedTokens: Sendable {
    enum Part: Sendable {
        case text(String)
        case token(Int)
    }

    private struct Entry: Sendable {
        let utf8: [UInt8]
        let token: AddedToken
    }

    private var byFirst: [UInt8: [Entry]] = [:]

    /// `content` maps a token to the text that is looked for.
    init(_ tokens: [AddedToken], content: (AddedToken) -> String = \.content) {
        for token in tokens {
            let utf8 = Array(content(token).utf8)
            guard let first = utf8.first else { continue }
            byFirst[first, default: []].append(Entry(utf8: utf8, token: token))
        }
        for first in byFirst.keys { byFirst[first]?.sort { $0.utf8.count > $1.utf8.count } }
    }

    /// The tokens of `text` and the text between them; without `special`, special tokens are text.
    func split(_ text: String, special: Bool) -> [Part] {
        if byFirst.isEmpty { return text.isEmpty ? [] : [.text(text)] }
        let bytes = Array(text.utf8)
        var parts: [Part] = []
        var start = 0
        var at = 0
        while at < bytes.count {
            let found = byFirst[bytes[at]]?.first { entry in
                (special || !entry.token.special) && bytes[at...].starts(with: entry.utf8)
            }
            guard let found else {
                at += 1
                continue
            }
            if start < at {
                var before = bytes[start..<at]
                if found.token.stripsLeft { before = before.prefix(Self.trimmedCount(before)) }
                if !before.isEmpty { parts.append(.text(String(decoding: before, as: UTF8.self))) }
            }
            parts.append(.token(found.token.id))
            // A token that another one's white space holds is found all the same, as in the library.
            at += found.utf8.count
            start = at + (found.token.stripsRight ? Self.spaceCount(bytes[at...]) : 0)
        }
        if start < bytes.count { parts.append(.text(String(decoding: bytes[start...], as: UTF8.self))) }
        return parts
    }

    /// Bytes of the white space that `bytes` begins with.
    private static func spaceCount(_ bytes: ArraySlice<UInt8>) -> Int {
        var at = bytes.startIndex
        while at < bytes.endIndex {
            let end = min(at + utf8Length(leading: bytes[at]), bytes.endIndex)
            let scalar = String(decoding: bytes[at..<end], as: UTF8.self).unicodeScalars.first
            guard let scalar, scalar.properties.isWhitespace else { break }
            at = end
        }
        return at - bytes.startIndex
    }

    /// Bytes without the white space at the end.
    private static func trimmedCount(_ bytes: ArraySlice<UInt8>) -> Int {
        let scalars = String(decoding: bytes, as: UTF8.self).unicodeScalars
        let spaces = scalars.reversed().prefix { $0.properties.isWhitespace }
        return bytes.count - spaces.reduce(0) { $0 + $1.utf8.count }
    }
}
