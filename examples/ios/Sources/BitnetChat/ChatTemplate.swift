import Foundation

/// One turn of a conversation.
public struct ChatMessage: Sendable, Equatable {
    public enum Role: String, Sendable { case system, user, assistant }

    public var role: Role
    public var content: String

    public init(_ role: Role, _ content: String) {
        self.role = role
        self.content = content
    }
}

/// Turns a conversation into the token ids that a model was trained on.
///
/// There is no Jinja here: one of three formats is recognized by the marks in the template, with its default system
/// message. What else a template may do (tools, dates, removing thoughts from earlier answers) is not reproduced;
/// a template that writes dates is refused.
public struct ChatTemplate: Sendable, Equatable {
    public enum Format: String, Sendable {
        /// SmolLM2, Qwen and others.
        case chatML
        /// Llama 3.0.
        case llama3
        /// BitNet b1.58 2B 4T.
        case bitnet
    }

    public let format: Format
    /// Stands before conversations that begin without a system message.
    public let defaultSystem: String?
    let trims: Bool

    /// Throws `BitnetError.unsupported`: the format is none of the three.
    public init(_ template: String) throws {
        for mark in ["strftime_now", "date_string", "Cutting Knowledge Date"] where template.contains(mark) {
            throw BitnetError.unsupported(
                "the chat template writes dates (\(mark)), which is not covered; use plain text")
        }
        if template.contains("<|start_header_id|>") {
            format = .llama3
        } else if template.contains("<|im_start|>") {
            format = .chatML
        } else if template.contains("<|eot_id|>"), template.contains("capitalize"), template.contains("Assistant: ") {
            format = .bitnet
        } else {
            throw BitnetError.unsupported("the chat template is none of ChatML, Llama 3 and BitNet; use plain text")
        }
        trims = format != .chatML || template.contains(#/content['"\]]*\s*\|\s*trim/#)
        // A literal of the template: a content in its place would be an expression, with quotes around it.
        let system = #/<\|im_start\|>system(?:\\n|\n)([^'"{}<]+)<\|im_end\|>/#
        let found = template.firstMatch(of: system).map { String($0.1).replacingOccurrences(of: #"\n"#, with: "\n") }
        defaultSystem = format == .chatML ? found : nil
    }

    /// Texts of the tokens that end an answer.
    public var ends: [String] { format == .chatML ? ["<|im_end|>"] : ["<|eot_id|>"] }

    /// The ids of a conversation, open for the assistant's answer. No content can forge a special token.
    ///
    /// Throws `BitnetError`: there are no messages, or the tokenizer lacks a token of the format.
    public func encode(_ messages: [ChatMessage], with tokenizer: Tokenizer) throws -> [Int] {
        guard let first = messages.first else { throw BitnetError.input("no messages to answer") }
        var messages = messages
        if let defaultSystem, first.role != .system { messages.insert(ChatMessage(.system, defaultSystem), at: 0) }
        let pieces = pieces(messages, beginning: tokenizer.configuration.beginning)
        let forged = messages.contains { message in
            tokenizer.encode(message.content, parsesSpecial: true, framed: false).contains(where: tokenizer.isSpecial)
        }
        if !forged {
            let text = pieces.reduce("") { $0 + $1.text }
            return tokenizer.encode(text, parsesSpecial: true, framed: false)
        }
        var parts: [AddedTokens.Part] = []
        var text = ""
        for piece in pieces {
            guard piece.special else {
                text += piece.text
                continue
            }
            guard let id = tokenizer.id(of: piece.text) else {
                throw BitnetError.unsupported("the tokenizer has no \(piece.text), which the chat template writes")
            }
            if !text.isEmpty { parts.append(.text(text)) }
            text = ""
            parts.append(.token(id))
        }
        if !text.isEmpty { parts.append(.text(text)) }
        return tokenizer.encode(parts: parts)
    }

    private struct Piece {
        let text: String
        let special: Bool
    }

    private func pieces(_ messages: [ChatMessage], beginning: String?) -> [Piece] {
        func token(_ text: String) -> Piece { Piece(text: text, special: true) }
        func plain(_ text: String) -> Piece { Piece(text: text, special: false) }
        func content(_ message: ChatMessage) -> String {
            trims ? message.content.trimmingCharacters(in: .whitespacesAndNewlines) : message.content
        }
        switch format {
        case .chatML:
            return messages.flatMap { message in
                [
                    token("<|im_start|>"), plain(message.role.rawValue + "\n" + content(message)), token("<|im_end|>"),
                    plain("\n"),
                ]
            } + [token("<|im_start|>"), plain("assistant\n")]
        case .llama3:
            func header(_ role: String) -> [Piece] {
                [token("<|start_header_id|>"), plain(role), token("<|end_header_id|>")]
            }
            return [token(beginning ?? "<|begin_of_text|>")]
                + messages.flatMap { message in
                    header(message.role.rawValue) + [plain("\n\n" + content(message)), token("<|eot_id|>")]
                } + header("assistant") + [plain("\n\n")]
        case .bitnet:
            return [token(beginning ?? "<|begin_of_text|>")]
                + messages.flatMap { message in
                    [plain(message.role.rawValue.capitalized + ": " + content(message)), token("<|eot_id|>")]
                } + [plain("Assistant: ")]
        }
    }
}
