import Foundation
import XCTest

@testable import BitnetChat

/// Texts, ids and conversations as the `tokenizers` library and the Python runtime have them.
///
/// `BITNET_CHAT_FIXTURES` names another directory of the same layout.
final class GoldenTests: XCTestCase {
    private static let directory: URL = {
        if let path = ProcessInfo.processInfo.environment["BITNET_CHAT_FIXTURES"] {
            return URL(fileURLWithPath: path, isDirectory: true)
        }
        return Bundle.module.resourceURL!.appendingPathComponent("Fixtures", isDirectory: true)
    }()

    private func forEachTokenizer(_ check: (String, Tokenizer, JSON) throws -> Void) throws {
        let golden = try JSON.read(Self.directory.appendingPathComponent("golden.json"))
        let cases = try XCTUnwrap(golden.members)
        XCTAssertGreaterThan(cases.count, 10)
        for (name, expected) in cases {
            try check(name, Tokenizer(directory: directory(of: name)), expected)
        }
    }

    private func directory(of name: String) -> URL {
        let own = Self.directory.appendingPathComponent(name, isDirectory: true)
        // bitnet-tiny lies in the repository: too large for a second copy.
        let repository = (0..<5).reduce(URL(fileURLWithPath: #filePath)) { url, _ in url.deletingLastPathComponent() }
        return FileManager.default.fileExists(atPath: own.path)
            ? own : repository.appendingPathComponent("model_zoo/packages/\(name)", isDirectory: true)
    }

    private func ids(_ json: JSON?) throws -> [Int] { try XCTUnwrap(json?.array).map { try XCTUnwrap($0.int) } }

    func testEncoding() throws {
        try forEachTokenizer { name, tokenizer, expected in
            for entry in try XCTUnwrap(expected["encode"]?.array) {
                let text = try XCTUnwrap(entry["text"]?.string)
                let what = "\(name): \(text.debugDescription)"
                XCTAssertEqual(tokenizer.encode(text, framed: false), try ids(entry["plain"]), what)
                XCTAssertEqual(tokenizer.encode(text, parsesSpecial: true), try ids(entry["special"]), what)
            }
        }
    }

    func testDecodingAtOnceAndTokenByToken() throws {
        try forEachTokenizer { name, tokenizer, expected in
            for entry in try XCTUnwrap(expected["decode"]?.array) {
                let ids = try ids(entry["ids"])
                let text = try XCTUnwrap(entry["text"]?.string)
                XCTAssertEqual(Array(tokenizer.decode(ids).utf8), Array(text.utf8), "\(name): \(ids)")
                var stream = TextStream(tokenizer)
                let streamed = ids.map { stream.append($0) }.joined() + stream.finish()
                XCTAssertEqual(Array(streamed.utf8), Array(text.utf8), "\(name): \(ids)")
            }
        }
    }

    func testConversations() throws {
        var count = 0
        try forEachTokenizer { name, tokenizer, expected in
            guard let chats = expected["chat"]?.array else { return }
            let template = try ChatTemplate(XCTUnwrap(tokenizer.configuration.chatTemplate))
            for chat in chats {
                let messages = try XCTUnwrap(chat["messages"]?.array).map { turn in
                    let role = try XCTUnwrap(ChatMessage.Role(rawValue: turn.array?[0].string ?? ""))
                    return ChatMessage(role, try XCTUnwrap(turn.array?[1].string))
                }
                XCTAssertEqual(
                    try template.encode(messages, with: tokenizer), try ids(chat["ids"]), "\(name): \(messages)")
                count += 1
            }
        }
        XCTAssertGreaterThan(count, 10)
    }
}
