import BitnetChat
import CoreML
import Foundation
import XCTest

@testable import BitnetChatUI
@testable import BitnetCoreML

/// The calls of Core ML, against the stand-in.
final class CoreMLLanguageModelTests: XCTestCase {
    private func open(_ longestQuery: Int = 128, _ change: (inout StandIn) -> Void = { _ in }) async throws
        -> (CoreMLLanguageModel, StandIn)
    {
        var standIn = StandIn()
        change(&standIn)
        let name = UUID().uuidString
        StandIn.register(name, standIn)
        StandIn.clearLog()
        let url = URL(fileURLWithPath: "/tmp/\(name).mlpackage")
        return (try await CoreMLLanguageModel.load(url, longestQuery: longestQuery), standIn)
    }

    private let tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]

    func testPrefillAndStepsGiveTheLogitsOfTheWholeSequence() async throws {
        for (functions, sizes, queries) in [
            ([String](), nil as [Int]?, ["": [4, 4, 3, 1, 1, 1, 1]]),
            (["decode", "prefill"], nil, ["prefill": [4, 4, 3], "decode": [1, 1, 1, 1]]),
            (["decode", "prefill"], [4], ["prefill": [4, 4], "decode": [1, 1, 1, 1, 1, 1, 1]]),
            (["decode", "prefill"], [2, 4], ["prefill": [4, 4, 2], "decode": [1, 1, 1, 1, 1]]),
        ] {
            for type in [MLMultiArrayDataType.float16, .float32] {
                let (model, standIn) = try await open(4) {
                    ($0.functions, $0.prefillSizes, $0.maskType, $0.logitsType) = (functions, sizes, type, type)
                }
                XCTAssertEqual(model.contextLength, 32)
                XCTAssertEqual(try model.prefill(tokens[..<11]), standIn.logits(after: Array(tokens[..<11])))
                for (index, token) in tokens.enumerated().dropFirst(11) {
                    XCTAssertEqual(try model.step(token), standIn.logits(after: Array(tokens[...index])))
                }
                XCTAssertEqual(model.position, tokens.count)
                for (function, expected) in queries { XCTAssertEqual(StandIn.log(function), expected, function) }
            }
        }
    }

    func testARewoundCacheForgets() async throws {
        let (model, standIn) = try await open()
        _ = try model.prefill(tokens[...])
        model.rewind(to: 3)
        XCTAssertEqual(try model.step(8), standIn.logits(after: [3, 1, 4, 8]))
        model.rewind(to: 0)
        XCTAssertEqual(try model.prefill([7, 7]), standIn.logits(after: [7, 7]))
    }

    func testTheContextIsTheSmallerOfManifestAndShape() async throws {
        let (model, _) = try await open { $0.metadata = [PackageNames.manifest: #"{"format": 1, "context": 5}"#] }
        XCTAssertEqual(model.contextLength, 5)
        XCTAssertThrowsError(try model.prefill(tokens[..<6]))
        XCTAssertEqual(model.position, 0)
        XCTAssertNoThrow(try model.prefill(tokens[..<5]))
        XCTAssertThrowsError(try model.step(0))
        let (larger, _) = try await open { $0.metadata = [PackageNames.manifest: #"{"format": 1, "context": 99}"#] }
        XCTAssertEqual(larger.contextLength, 32)
    }

    func testPackagesOfAnotherFormAreRefusedByName() async {
        for name in ["inputIds", "causalMask", "logits", "keyCache", "valueCache"] {
            do {
                _ = try await open { $0.missing = name }
                XCTFail("\(name) was not missed")
            } catch {
                XCTAssertTrue("\(error)".contains(name), "\(error)")
            }
        }
        for metadata in ["{", #"{"format": 2}"#, #"{"format": 1}"#] {
            do {
                _ = try await open { $0.metadata = [PackageNames.manifest: metadata] }
                XCTFail("\(metadata) was taken")
            } catch {
                XCTAssertTrue(error is BitnetError)
            }
        }
    }

    func testWrongIdsAreRefused() async throws {
        let (model, _) = try await open()
        XCTAssertThrowsError(try model.step(-1))
        XCTAssertThrowsError(try model.step(1 << 40))
        XCTAssertThrowsError(try model.prefill([]))
    }

    func testAConversationOfTheAppAnswers() async throws { try await talk() }
}

@MainActor
private func talk() async throws {
    let name = UUID().uuidString
    var standIn = StandIn()
    (standIn.context, standIn.vocabulary) = (512, 400)
    StandIn.register(name, standIn)
    let fixtures = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    let conversation = Conversation(
        package: URL(fileURLWithPath: "/tmp/\(name).mlpackage"),
        tokenizer: fixtures.appendingPathComponent("BitnetChatTests/Fixtures/smollm2"))
    conversation.maxNewTokens = 16
    await conversation.load()
    XCTAssertNil(conversation.problem)
    XCTAssertTrue(conversation.isReady)
    for turn in 1...2 {
        conversation.ask("hello world")
        XCTAssertTrue(conversation.isAnswering)
        for _ in 0..<600 where conversation.isAnswering { try await Task.sleep(for: .milliseconds(50)) }
        XCTAssertFalse(conversation.isAnswering)
        XCTAssertNil(conversation.problem)
        XCTAssertEqual(conversation.messages.count, 2 * turn)
    }
    XCTAssertFalse(conversation.messages[1].content.isEmpty)
    let missing = Conversation(package: URL(fileURLWithPath: "/tmp/no.mlpackage"), tokenizer: fixtures)
    await missing.load()
    XCTAssertNotNil(missing.problem)
}
