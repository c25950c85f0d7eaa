import Foundation

/// The text side of a model: what stands in the directory `NAME.tokenizer` beside `NAME.mlpackage`.
public struct ChatFiles: Sendable {
    public let tokenizer: Tokenizer
    /// Nil where there is none, or none that is covered: the model then only continues text.
    public let template: ChatTemplate?
    /// Why `template` is nil although the files have one.
    public let templateProblem: BitnetError?
    /// Every token that ends an answer.
    public let stopTokens: Set<Int>

    /// Throws `BitnetError`: a file is missing or broken, or the tokenizer is not covered.
    public init(directory: URL) throws {
        let tokenizer = try Tokenizer(directory: directory)
        self.tokenizer = tokenizer
        var problem: BitnetError?
        do {
            template = try tokenizer.configuration.chatTemplate.map { try ChatTemplate($0) }
        } catch let error as BitnetError {
            template = nil
            problem = error
        }
        templateProblem = problem
        let url = directory.appendingPathComponent("generation_config.json")
        let config = FileManager.default.fileExists(atPath: url.path) ? try JSON.read(url) : .object([])
        let named = config["eos_token_id"]
        // generation_config.json often names only one of several.
        let texts = (template?.ends ?? []) + [tokenizer.configuration.end].compactMap { $0 }
        stopTokens = Set((named?.array ?? [named].compactMap { $0 }).compactMap(\.int))
            .union(texts.compactMap(tokenizer.id).filter(tokenizer.isSpecial))
    }

    /// The ids of a conversation, open for the answer.
    ///
    /// Throws `BitnetError`: there is no template, or as `ChatTemplate.encode`.
    public func encode(_ messages: [ChatMessage]) throws -> [Int] {
        guard let template else {
            throw templateProblem
                ?? BitnetError.unsupported("the model has no chat template; give it a text to continue")
        }
        return try template.encode(messages, with: tokenizer)
    }
}
