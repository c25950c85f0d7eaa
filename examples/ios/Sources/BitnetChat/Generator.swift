import Foundation

/// What a generation tells as it goes.
public enum GenerationEvent: Sendable, Equatable {
    /// Text to append: whole characters.
    case text(String)
    /// The last event.
    case end(GenerationSummary)
}

/// Why a generation ended, and what it took.
public struct GenerationSummary: Sendable, Equatable {
    public enum Reason: String, Sendable {
        /// The model gave a token that ends an answer.
        case stopToken
        case maxNewTokens
        case contextFull
        case cancelled
    }

    public var reason = Reason.maxNewTokens
    public var promptTokens = 0
    /// Of the prompt, tokens that the cache already held.
    public var cachedTokens = 0
    public var newTokens = 0
    public var prefillSeconds = 0.0
    public var decodeSeconds = 0.0
}

/// When a generation ends.
public struct GenerationLimits: Sendable, Equatable {
    public var maxNewTokens: Int
    public var stopTokens: Set<Int>

    public init(maxNewTokens: Int = 256, stopTokens: Set<Int> = []) {
        self.maxNewTokens = maxNewTokens
        self.stopTokens = stopTokens
    }
}

/// Generates text from token ids, one sequence after another; keeps what the next prompt has in common with the last.
public actor Generator {
    private let model: any LanguageModel
    private let tokenizer: Tokenizer
    /// The tokens that the model's cache holds.
    private var held: [Int] = []

    public init(model: sending any LanguageModel, tokenizer: Tokenizer) {
        self.model = model
        self.tokenizer = tokenizer
    }

    /// Starts at once and ends at a stop token, at `maxNewTokens` or with a full context; leaving the loop over the
    /// stream cancels it. Several streams of one generator run one after another.
    ///
    /// The stream throws `BitnetError`, and what the model throws.
    ///
    /// - Parameter continues: the text goes on after the prompt's, and keeps a space at its beginning.
    public nonisolated func stream(
        _ prompt: [Int], sampling: SamplingSettings = SamplingSettings(), limits: GenerationLimits = GenerationLimits(),
        continues: Bool = false
    ) -> AsyncThrowingStream<GenerationEvent, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    let text = TextStream(self.tokenizer, continues: continues)
                    let summary = try await self.run(prompt, sampling, limits, text) { continuation.yield(.text($0)) }
                    continuation.yield(.end(summary))
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    // No suspension inside: another run cannot come between two tokens of this one.
    private func run(
        _ prompt: [Int], _ sampling: SamplingSettings, _ limits: GenerationLimits, _ text: TextStream,
        _ send: (String) -> Void
    ) throws -> GenerationSummary {
        guard !prompt.isEmpty else { throw BitnetError.input("the prompt has no tokens") }
        guard prompt.count <= model.contextLength else {
            throw BitnetError.input("the prompt has \(prompt.count) tokens, the context \(model.contextLength)")
        }
        guard limits.maxNewTokens > 0 else {
            throw BitnetError.input("maxNewTokens is \(limits.maxNewTokens), expected at least 1")
        }
        var text = text
        var sampler = try Sampler(sampling)
        sampler.observe(prompt)
        var summary = GenerationSummary()
        summary.promptTokens = prompt.count
        summary.cachedTokens = reuse(prompt)
        do {
            let start = ContinuousClock.now
            try Task.checkCancellation()
            var logits = try model.prefill(prompt[summary.cachedTokens...])
            held = prompt
            summary.prefillSeconds = seconds(since: start)
            let decodeStart = ContinuousClock.now
            defer { summary.decodeSeconds = seconds(since: decodeStart) }
            while true {
                try Task.checkCancellation()
                let token = try sampler.sample(logits)
                if limits.stopTokens.contains(token) {
                    summary.reason = .stopToken
                    break
                }
                summary.newTokens += 1
                sampler.observe(CollectionOfOne(token))
                let piece = text.append(token)
                if !piece.isEmpty { send(piece) }
                if summary.newTokens == limits.maxNewTokens { break }
                if model.position >= model.contextLength {
                    summary.reason = .contextFull
                    break
                }
                logits = try model.step(token)
                held.append(token)
            }
        } catch is CancellationError {
            summary.reason = .cancelled
            held.removeLast(max(0, held.count - model.position))
        } catch {
            held.removeLast(max(0, held.count - model.position))
            throw error
        }
        let rest = text.finish()
        if !rest.isEmpty { send(rest) }
        return summary
    }

    /// Keeps the tokens that the cache and `prompt` begin with, all but the prompt's last; how many.
    private func reuse(_ prompt: [Int]) -> Int {
        let common = zip(held, prompt.dropLast()).prefix { $0 == $1 }.count
        model.rewind(to: common)
        held.removeLast(held.count - common)
        return common
    }
}

private func seconds(since start: ContinuousClock.Instant) -> Double {
    let (seconds, attoseconds) = (ContinuousClock.now - start).components
    return Double(seconds) + Double(attoseconds) * 1e-18
}
