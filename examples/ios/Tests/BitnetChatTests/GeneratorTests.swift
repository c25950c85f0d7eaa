import XCTest

@testable import BitnetChat

/// Says the alphabet of a tokenizer in a circle, and writes down what it was asked.
private final class CircleModel: LanguageModel {
    let contextLength: Int
    private(set) var position = 0
    private let log: Log
    private let size: Int
    private let failsAt: Int?

    init(_ log: Log, contextLength: Int = 64, size: Int = 5, failsAt: Int? = nil) {
        self.log = log
        self.contextLength = contextLength
        self.size = size
        self.failsAt = failsAt
    }

    func rewind(to position: Int) {
        precondition(position <= self.position)
        self.position = position
    }

    func prefill(_ tokens: ArraySlice<Int>) throws -> [Float] {
        precondition(!tokens.isEmpty && position + tokens.count <= contextLength)
        log.add(Array(tokens), at: position)
        if let failsAt, position + tokens.count >= failsAt { throw BitnetError.model("broken") }
        position += tokens.count
        var logits = [Float](repeating: 0, count: size)
        logits[(tokens.last! + 1) % size] = 1
        return logits
    }
}

private final class Log: @unchecked Sendable {
    private let lock = NSLock()
    private var entries: [(position: Int, tokens: [Int])] = []

    func add(_ tokens: [Int], at position: Int) { lock.withLock { entries.append((position, tokens)) } }
    var count: Int { lock.withLock { entries.count } }
    var read: [String] { lock.withLock { entries.map { "\($0.position): \($0.tokens)" } } }
}

final class GeneratorTests: XCTestCase {
    private func run(
        _ generator: Generator, _ prompt: [Int], _ limits: GenerationLimits
    ) async throws -> (String, GenerationSummary) {
        var text = ""
        var summary: GenerationSummary?
        for try await event in generator.stream(prompt, limits: limits) {
            switch event {
            case .text(let piece): text += piece
            case .end(let end): summary = end
            }
        }
        return (text, try XCTUnwrap(summary))
    }

    func testTokensBecomeTextUntilALimit() async throws {
        let log = Log()
        let generator = Generator(model: CircleModel(log), tokenizer: try TokenizerTests.tokenizer())
        let (text, summary) = try await run(generator, [4, 4], GenerationLimits(maxNewTokens: 4))
        XCTAssertEqual(text, "ab ab")
        XCTAssertEqual(summary.reason, .maxNewTokens)
        XCTAssertEqual([summary.promptTokens, summary.cachedTokens, summary.newTokens], [2, 0, 4])
        // The last token needs no step of its own.
        XCTAssertEqual(log.read, ["0: [4, 4]", "2: [0]", "3: [1]", "4: [2]"])
        XCTAssertGreaterThan(summary.prefillSeconds, 0)
    }

    func testAStopTokenEndsWithoutText() async throws {
        let generator = Generator(model: CircleModel(Log()), tokenizer: try TokenizerTests.tokenizer())
        let (text, summary) = try await run(generator, [4], GenerationLimits(maxNewTokens: 9, stopTokens: [2]))
        XCTAssertEqual(text, "ab")
        XCTAssertEqual(summary.reason, .stopToken)
        XCTAssertEqual(summary.newTokens, 2)
    }

    func testTheNextPromptReadsOnlyWhatIsNew() async throws {
        let log = Log()
        let generator = Generator(model: CircleModel(log), tokenizer: try TokenizerTests.tokenizer())
        _ = try await run(generator, [3, 4], GenerationLimits(maxNewTokens: 2))
        XCTAssertEqual(log.read, ["0: [3, 4]", "2: [0]"])
        let (_, longer) = try await run(generator, [3, 4, 0, 2, 1], GenerationLimits(maxNewTokens: 1))
        XCTAssertEqual(longer.cachedTokens, 3)
        XCTAssertEqual(log.read.last, "3: [2, 1]")
        // The last token of a prompt is always read: its logits are needed.
        let (_, same) = try await run(generator, [3, 4, 0, 2, 1], GenerationLimits(maxNewTokens: 1))
        XCTAssertEqual(same.cachedTokens, 4)
        let (_, other) = try await run(generator, [1], GenerationLimits(maxNewTokens: 1))
        XCTAssertEqual(other.cachedTokens, 0)
        XCTAssertEqual(log.read.last, "0: [1]")
    }

    func testTheContextIsALimit() async throws {
        let log = Log()
        let generator = Generator(model: CircleModel(log, contextLength: 4), tokenizer: try TokenizerTests.tokenizer())
        let (text, summary) = try await run(generator, [4, 4], GenerationLimits(maxNewTokens: 99))
        XCTAssertEqual(summary.reason, .contextFull)
        XCTAssertEqual(text, "ab ")
        let (_, full) = try await run(generator, [4, 4, 4, 4], GenerationLimits(maxNewTokens: 99))
        XCTAssertEqual(full.newTokens, 1)
        await assertRefused { _ = try await self.run(generator, [0, 0, 0, 0, 0], GenerationLimits()) }
        await assertRefused { _ = try await self.run(generator, [], GenerationLimits()) }
        await assertRefused { _ = try await self.run(generator, [0], GenerationLimits(maxNewTokens: 0)) }
    }

    func testCancellingStopsTheModelAndLeavesTheGeneratorUsable() async throws {
        let log = Log()
        let generator = Generator(
            model: CircleModel(log, contextLength: 1 << 24), tokenizer: try TokenizerTests.tokenizer())
        for try await event in generator.stream([4], limits: GenerationLimits(maxNewTokens: 1 << 24)) {
            if event == .text("b") { break }
        }
        // The next run waits for the end of the cancelled one.
        let (text, _) = try await run(generator, [4], GenerationLimits(maxNewTokens: 2))
        XCTAssertEqual(text, "ab")
        XCTAssertLessThan(log.count, 1 << 23)
    }

    func testAFailureReachesTheCallerAndTheCacheStaysTrue() async throws {
        let log = Log()
        let generator = Generator(model: CircleModel(log, failsAt: 4), tokenizer: try TokenizerTests.tokenizer())
        await assertRefused { _ = try await self.run(generator, [1, 4], GenerationLimits(maxNewTokens: 9)) }
        let (_, summary) = try await run(generator, [1, 4, 0], GenerationLimits(maxNewTokens: 1))
        XCTAssertEqual(summary.cachedTokens, 2)
    }

    private func assertRefused(_ work: () async throws -> Void, line: UInt = #line) async {
        do {
            try await work()
            XCTFail("nothing was thrown", line: line)
        } catch {
            XCTAssertTrue(error is BitnetError, "\(error)", line: line)
        }
    }
}
