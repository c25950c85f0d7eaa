#if canImport(Observation) && canImport(CoreML)
import BitnetChat
import BitnetCoreML
import Foundation
import Observation

/// The state behind `ChatView`.
@MainActor
@Observable
public final class Conversation {
    public private(set) var messages: [ChatMessage] = []
    public private(set) var isAnswering = false
    public private(set) var problem: String?
    public private(set) var status = ""
    public var sampling = SamplingSettings()
    public var maxNewTokens = 1024

    private let package: URL
    private let tokenizer: URL
    private var files: ChatFiles?
    private var generator: Generator?
    private var answering: Task<Void, Never>?

    public init(package: URL, tokenizer: URL) {
        self.package = package
        self.tokenizer = tokenizer
    }

    public var isReady: Bool { generator != nil }

    /// Opens the model, once; takes seconds, and longer the first time that a device sees it.
    public func load() async {
        guard generator == nil, status.isEmpty else { return }
        status = "Loading…"
        defer { status = "" }
        do {
            let url = tokenizer
            let files = try await Task.detached { try ChatFiles(directory: url) }.value
            let model = try await CoreMLLanguageModel.load(package)
            generator = Generator(model: model, tokenizer: files.tokenizer)
            self.files = files
        } catch {
            problem = error.localizedDescription
        }
    }

    /// Answers `text` in the light of all that was said.
    public func ask(_ text: String) {
        guard let generator, let files, !isAnswering else { return }
        problem = nil
        messages.append(ChatMessage(.user, text))
        let prompt: [Int]
        do {
            prompt =
                try files.template == nil
                ? files.tokenizer.encode(text) : files.encode(messages)
        } catch {
            problem = error.localizedDescription
            return
        }
        messages.append(ChatMessage(.assistant, ""))
        isAnswering = true
        let limits = GenerationLimits(maxNewTokens: maxNewTokens, stopTokens: files.stopTokens)
        let stream = generator.stream(prompt, sampling: sampling, limits: limits, continues: files.template == nil)
        answering = Task {
            do {
                for try await event in stream {
                    if case .text(let piece) = event { self.messages[self.messages.count - 1].content += piece }
                }
            } catch {
                self.problem = error.localizedDescription
            }
            self.isAnswering = false
        }
    }

    /// Ends the answer where it is.
    public func stop() { answering?.cancel() }
}
#endif
