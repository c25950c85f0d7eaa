import Foundation

/// A JSON value whose objects keep every key.
///
/// Foundation's readers put keys into dictionaries of `String`, and Swift takes canonically equivalent strings for
/// equal: a vocabulary with both "\u{212B}" and "\u{00C5}" would silently lose one.
enum JSON: Sendable {
    case null
    case bool(Bool)
    case number(Double)
    case string(String)
    case array([JSON])
    case object([(key: String, value: JSON)])

    /// The value of a key; the last counts where a key is repeated.
    subscript(key: String) -> JSON? {
        guard case .object(let members) = self else { return nil }
        return members.last { $0.key == key }?.value
    }

    var string: String? {
        if case .string(let text) = self { text } else { nil }
    }

    var bool: Bool? {
        if case .bool(let value) = self { value } else { nil }
    }

    /// A whole number that fits 32 bits.
    var int: Int? {
        guard case .number(let value) = self, value.magnitude <= 0x7FFF_FFFF else { return nil }
        return Int(exactly: value)
    }

    var array: [JSON]? {
        if case .array(let items) = self { items } else { nil }
    }

    var members: [(key: String, value: JSON)]? {
        if case .object(let members) = self { members } else { nil }
    }

    /// The value itself, or nil for null.
    var present: JSON? {
        if case .null = self { nil } else { self }
    }

    /// Reads a file of at most `limit` bytes; `BitnetError.file` otherwise.
    static func read(_ url: URL, limit: Int = 256 << 20) throws -> JSON {
        let name = url.lastPathComponent
        let data: Data
        do {
            let size = try url.resourceValues(forKeys: [.fileSizeKey]).fileSize ?? 0
            guard size <= limit else { throw BitnetError.file("\(name) has \(size) bytes, more than \(limit)") }
            data = try Data(contentsOf: url)
        } catch let error as BitnetError {
            throw error
        } catch {
            throw BitnetError.file("\(name) cannot be read: \(error.localizedDescription)")
        }
        return try parse([UInt8](data), name: name)
    }

    static func parse(_ bytes: [UInt8], name: String = "JSON") throws -> JSON {
        var parser = JSONParser(bytes: bytes, name: name)
        return try parser.document()
    }
}

/// RFC 8259, at most 64 levels deep.
private struct JSONParser {
    let bytes: [UInt8]
    let name: String
    var at = 0
    var depth = 0

    mutating func document() throws -> JSON {
        let value = try value()
        skipSpace()
        guard at == bytes.count else { throw failure("text after the value") }
        return value
    }

    private func failure(_ what: String) -> BitnetError {
        .file("\(name) is not valid JSON: \(what) at byte \(at)")
    }

    private var next: UInt8? { at < bytes.count ? bytes[at] : nil }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { at += 1 }
    }

    private mutating func take(_ byte: UInt8) -> Bool {
        skipSpace()
        guard next == byte else { return false }
        at += 1
        return true
    }

    private mutating func value() throws -> JSON {
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return try nested { parser in try parser.object() }
        case UInt8(ascii: "["): return try nested { parser in try parser.array() }
        case UInt8(ascii: "\""): return .string(try text())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    private mutating func nested(_ read: (inout JSONParser) throws -> JSON) throws -> JSON {
        depth += 1
        defer { depth -= 1 }
        guard depth <= 64 else { throw failure("more than 64 levels") }
        at += 1
        return try read(&self)
    }

    private mutating func object() throws -> JSON {
        var members: [(key: String, value: JSON)] = []
        if take(UInt8(ascii: "}")) { return .object(members) }
        repeat {
            skipSpace()
            guard next == UInt8(ascii: "\"") else { throw failure("a key is missing") }
            let key = try text()
            guard take(UInt8(ascii: ":")) else { throw failure("no colon after a key") }
            members.append((key, try value()))
        } while take(UInt8(ascii: ","))
        guard take(UInt8(ascii: "}")) else { throw failure("an object has no end") }
        return .object(members)
    }

    private mutating func array() throws -> JSON {
        var items: [JSON] = []
        if take(UInt8(ascii: "]")) { return .array(items) }
        repeat { items.append(try value()) } while take(UInt8(ascii: ","))
        guard take(UInt8(ascii: "]")) else { throw failure("a list has no end") }
        return .array(items)
    }

    private mutating func word(_ text: StaticString, _ value: JSON) throws -> JSON {
        let end = at + text.utf8CodeUnitCount
        guard end <= bytes.count, text.withUTF8Buffer({ $0.elementsEqual(bytes[at..<end]) }) else {
            throw failure("an unknown word")
        }
        at = end
        return value
    }

    private mutating func number() throws -> JSON {
        let start = at
        while let byte = next, byte < 0x80, "+-.0123456789eE".utf8.contains(byte) { at += 1 }
        guard at > start, let value = Double(String(decoding: bytes[start..<at], as: UTF8.self)), value.isFinite else {
            throw failure("no value")
        }
        return .number(value)
    }

    private mutating func text() throws -> String {
        at += 1
        var plain: [UInt8] = []
        while let byte = next {
            at += 1
            switch byte {
            case UInt8(ascii: "\""):
                guard let text = String(validating: plain, as: UTF8.self) else { throw failure("a text is no UTF-8") }
                return text
            case UInt8(ascii: "\\"): plain.append(contentsOf: Array(String(try escape()).utf8))
            case 0..<0x20: throw failure("a control character in a text")
            default: plain.append(byte)
            }
        }
        throw failure("a text has no end")
    }

    private mutating func escape() throws -> Unicode.Scalar {
        guard let byte = next else { throw failure("a text has no end") }
        at += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return Unicode.Scalar(byte)
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{C}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"):
            let unit = try codeUnit()
            if let scalar = Unicode.Scalar(unit) { return scalar }
            // A pair of surrogates; one alone is no character.
            guard unit < 0xDC00, next == UInt8(ascii: "\\"), at + 1 < bytes.count, bytes[at + 1] == UInt8(ascii: "u")
            else { throw failure("half a surrogate pair") }
            at += 2
            let low = try codeUnit()
            guard 0xDC00...0xDFFF ~= low else { throw failure("half a surrogate pair") }
            let code = 0x10000 + ((UInt32(unit) - 0xD800) << 10) + (UInt32(low) - 0xDC00)
            guard let scalar = Unicode.Scalar(code) else { throw failure("half a surrogate pair") }
            return scalar
        default: throw failure("an unknown escape")
        }
    }

    private mutating func codeUnit() throws -> UInt16 {
        guard at + 4 <= bytes.count, bytes[at..<at + 4].allSatisfy({ Character(Unicode.Scalar($0)).isHexDigit }),
            let unit = UInt16(String(decoding: bytes[at..<at + 4], as: UTF8.self), radix: 16)
        else { throw failure("a \\u without four digits") }
        at += 4
        return unit
    }
}
