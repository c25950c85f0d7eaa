/// Token ids in, text out: whole characters only, as soon as their last byte is there.
public struct TextStream: Sendable {
    private let tokenizer: Tokenizer
    private var pending: [UInt8] = []
    private var first: Bool

    /// - Parameter continues: the text goes on after another; a space at its beginning is then kept.
    public init(_ tokenizer: Tokenizer, continues: Bool = false) {
        self.tokenizer = tokenizer
        first = !continues
    }

    /// The text that `id` completes, often all of its own, sometimes nothing.
    public mutating func append(_ id: Int) -> String {
        let bytes = tokenizer.bytes(of: id, first: first)
        if !tokenizer.isSpecial(id) { first = false }
        pending += bytes
        let whole = pending.count - Self.openCount(pending)
        defer { pending.removeFirst(whole) }
        return String(decoding: pending[..<whole], as: UTF8.self)
    }

    /// What is left: U+FFFD for a character that was begun, otherwise nothing.
    public mutating func finish() -> String {
        defer { pending = [] }
        return String(decoding: pending, as: UTF8.self)
    }

    /// Bytes at the end that begin a character and may become one.
    private static func openCount(_ bytes: [UInt8]) -> Int {
        for count in 1...3 where count <= bytes.count {
            let byte = bytes[bytes.count - count]
            if byte & 0xC0 == 0x80 { continue }
            return utf8Length(leading: byte) > count ? count : 0
        }
        return 0
    }
}

/// Bytes of the character that begins with `byte`; 1 for one that begins none.
func utf8Length(leading byte: UInt8) -> Int {
    switch byte {
    case 0xC2...0xDF: 2
    case 0xE0...0xEF: 3
    case 0xF0...0xF4: 4
    default: 1
    }
}
