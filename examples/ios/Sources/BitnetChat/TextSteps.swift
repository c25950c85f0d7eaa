import Foundation

/// What a tokenizer does to a text before it cuts it into words.
enum Normalizer: Sendable {
    case nfc
    case nfkc
    case prepend(String)
    case replace(String, by: String)

    /// The steps of the member `normalizer` of tokenizer.json; `BitnetError.unsupported` for any other.
    static func steps(_ json: JSON?) throws -> [Normalizer] {
        guard let json = json?.present else { return [] }
        let type = json["type"]?.string ?? ""
        switch type {
        case "Sequence": return try (json["normalizers"]?.array ?? []).flatMap { try steps($0) }
        case "NFC": return [.nfc]
        case "NFKC": return [.nfkc]
        case "Prepend":
            if let text = json["prepend"]?.string { return [.prepend(text)] }
        case "Replace":
            if let from = json["pattern"]?["String"]?.string, let to = json["content"]?.string {
                return [.replace(from, by: to)]
            }
        default: break
        }
        throw BitnetError.unsupported("tokenizer.json has a normalizer that is not covered: \(type)")
    }

    func apply(_ text: String) -> String {
        switch self {
        case .nfc: text.precomposedStringWithCanonicalMapping
        case .nfkc: text.precomposedStringWithCompatibilityMapping
        case .prepend(let prefix): text.isEmpty ? text : prefix + text
        case .replace(let from, let to): text.replacingOccurrences(of: from, with: to, options: .literal)
        }
    }
}

/// How a tokenizer cuts a text into words, within which it merges.
enum PreTokenizer: Sendable {
    enum Behavior: String, Sendable {
        case isolated = "Isolated"
        case removed = "Removed"
        case mergedWithPrevious = "MergedWithPrevious"
        case mergedWithNext = "MergedWithNext"
    }

    case split(NSRegularExpression, Behavior, invert: Bool)
    /// A space before the text, unless there is one.
    case prefixSpace
    /// Spaces become `mark`, and one stands before the text: never, before the first piece, or before each.
    case mark(String, scheme: Scheme)

    enum Scheme: String, Sendable { case never, first, always }

    /// The words of GPT-2.
    static let gpt2 = #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#

    /// The steps of the member `pre_tokenizer` of tokenizer.json; `BitnetError.unsupported` for any other.
    static func steps(_ json: JSON?) throws -> [PreTokenizer] {
        guard let json = json?.present else { return [] }
        let type = json["type"]?.string ?? ""
        switch type {
        case "Sequence": return try (json["pretokenizers"]?.array ?? []).flatMap { try steps($0) }
        case "ByteLevel":
            let words = try json["use_regex"]?.bool == false ? [] : [split(pattern: gpt2)]
            return (json["add_prefix_space"]?.bool == false ? [] : [.prefixSpace]) + words
        case "Digits": return [try split(pattern: json["individual_digits"]?.bool == true ? #"\p{N}"# : #"\p{N}+"#)]
        case "Metaspace":
            let mark = json["replacement"]?.string ?? "\u{2581}"
            let old = json["add_prefix_space"]?.bool == false ? "never" : "always"
            guard let scheme = Scheme(rawValue: json["prepend_scheme"]?.string ?? old) else { break }
            let words = try split(pattern: NSRegularExpression.escapedPattern(for: mark), .mergedWithNext)
            return [.mark(mark, scheme: scheme)] + (json["split"]?.bool == false ? [] : [words])
        case "Split":
            guard let behavior = Behavior(rawValue: json["behavior"]?.string ?? "") else { break }
            let text = json["pattern"]?["String"]?.string.map { NSRegularExpression.escapedPattern(for: $0) }
            guard let pattern = json["pattern"]?["Regex"]?.string ?? text else { break }
            return [try split(pattern: pattern, behavior, invert: json["invert"]?.bool ?? false)]
        default: break
        }
        throw BitnetError.unsupported("tokenizer.json has a pre-tokenizer that is not covered: \(type)")
    }

    private static func split(
        pattern: String, _ behavior: Behavior = .isolated, invert: Bool = false
    ) throws -> PreTokenizer {
        // Foundation's \s leaves out U+000B and U+0085, which the library's has.
        let portable = pattern.replacingOccurrences(of: #"\s"#, with: #"\p{White_Space}"#)
            .replacingOccurrences(of: #"\S"#, with: #"\P{White_Space}"#)
        do {
            return .split(try NSRegularExpression(pattern: portable), behavior, invert: invert)
        } catch {
            throw BitnetError.unsupported("tokenizer.json has a pattern that Foundation cannot read: \(pattern)")
        }
    }

    /// Cuts a piece; `first` says that the text begins with it.
    func apply(_ text: String, first: Bool) -> [String] {
        switch self {
        case .prefixSpace: return [text.utf8.first == UInt8(ascii: " ") ? text : " " + text]
        case .mark(let mark, let scheme):
            let marked = text.replacingOccurrences(of: " ", with: mark, options: .literal)
            guard scheme == .always || (scheme == .first && first), !marked.utf8.starts(with: mark.utf8) else {
                return [marked]
            }
            return [mark + marked]
        case .split(let pattern, let behavior, let invert):
            return cut(text, by: pattern, behavior, invert: invert)
        }
    }

    private func cut(_ text: String, by pattern: NSRegularExpression, _ behavior: Behavior, invert: Bool) -> [String] {
        let units = Array(text.utf16)
        // What matches, and what lies between, in order.
        var parts: [(range: Range<Int>, matches: Bool)] = []
        var end = 0
        for match in pattern.matches(in: text, range: NSRange(location: 0, length: units.count)) {
            let range = match.range.location..<match.range.location + match.range.length
            if range.isEmpty { continue }
            if range.lowerBound > end { parts.append((end..<range.lowerBound, invert)) }
            parts.append((range, !invert))
            end = range.upperBound
        }
        if end < units.count { parts.append((end..<units.count, invert)) }
        var ranges: [Range<Int>] = []
        var joins = false
        for (range, matches) in parts {
            switch behavior {
            case .isolated: ranges.append(range)
            case .removed: if !matches { ranges.append(range) }
            case .mergedWithPrevious:
                // A match joins the part before it, unless that is a match, too.
                if matches, joins, let last = ranges.popLast() {
                    ranges.append(last.lowerBound..<range.upperBound)
                } else {
                    ranges.append(range)
                }
                joins = !matches
            case .mergedWithNext:
                if !matches, joins, let last = ranges.popLast() {
                    ranges.append(last.lowerBound..<range.upperBound)
                } else {
                    ranges.append(range)
                }
                joins = matches
            }
        }
        return ranges.map { String(decoding: units[$0], as: UTF16.self) }
    }
}
