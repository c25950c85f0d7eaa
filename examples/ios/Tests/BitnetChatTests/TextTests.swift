import Foundation
import XCTest

@testable import BitnetChat

final class JSONTests: XCTestCase {
    private func parse(_ text: String) throws -> JSON { try JSON.parse(Array(text.utf8)) }

    func testValues() throws {
        let json = try parse(#" {"a": [1, -2.5e1, true, null], "b": "\u00e9\ud83d\ude00\n\"\\", "a": []} "#)
        XCTAssertEqual(json.members?.count, 3)
        XCTAssertEqual(json["a"]?.array?.count, 0)
        XCTAssertEqual(json["b"]?.string, "é😀\n\"\\")
        XCTAssertEqual(json.members?[0].value.array?[0].int, 1)
        XCTAssertNil(json.members?[0].value.array?[1].int.map { $0 == -25 ? nil : $0 } ?? nil)
        XCTAssertNil(try parse("1.5").int)
        XCTAssertNil(try parse("9999999999").int)
    }

    func testKeysThatOnlyLookEqualAreKept() throws {
        let members = try XCTUnwrap(try parse(#"{"\u212b": 1, "\u00c5": 2, "A\u030a": 3}"#).members)
        XCTAssertEqual(members.map { Array($0.key.unicodeScalars).count }, [1, 1, 2])
        XCTAssertEqual(members.map(\.value.int), [1, 2, 3])
    }

    func testBrokenTextIsRefused() {
        let deep = String(repeating: "[", count: 100_000)
        for text in [
            "", "{", "[1,]", "{\"a\" 1}", "{a: 1}", "tru", "1 2", "\"", "\"\\x\"", "\"\\ud800\"", "\"\\u12g4\"",
            "\"\n\"",
            "nan", "--1", "1e999", deep,
        ] {
            XCTAssertThrowsError(try parse(text), text.prefix(20).description) { error in
                guard case BitnetError.file = error else { return XCTFail("\(error)") }
            }
        }
        XCTAssertThrowsError(try JSON.parse([0x22, 0xFF, 0x22]))
    }
}

final class TokenizerTests: XCTestCase {
    static func tokenizer(_ changes: String = "", model: String = "", config: String = "{}") throws -> Tokenizer {
        let text = """
            {"added_tokens": [{"id": 5, "content": "<end>", "special": true, "normalized": false}], \(changes)
             "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
             "decoder": {"type": "ByteLevel"},
             "model": {"type": "BPE", \(model)
              "vocab": {"a": 0, "b": 1, "\u{120}": 2, "ab": 3, "Ã": 4, "<end>": 5, "©": 6,
              "ð": 7, "Ł": 8, "ĺ": 9, "Ģ": 10}, "merges": ["a b"]}}
            """
        return try Tokenizer(
            JSON.parse(Array(text.utf8)), configuration: TokenizerConfiguration(JSON.parse(Array(config.utf8))))
    }

    func testWhatIsNotCoveredIsRefusedByName() {
        let cases = [
            ("\"normalizer\": {\"type\": \"Lowercase\"},", "", "Lowercase"),
            ("\"post_processor\": {\"type\": \"BertProcessing\"},", "", "BertProcessing"),
            ("", "\"dropout\": 0.1,", "dropout"),
            ("", "\"end_of_word_suffix\": \"</w>\",", "end_of_word_suffix"),
            ("", "\"type\": \"Unigram\",", "Unigram"),
        ]
        for (changes, model, name) in cases {
            XCTAssertThrowsError(try Self.tokenizer(changes, model: model)) { error in
                guard case BitnetError.unsupported(let text) = error else { return XCTFail("\(error)") }
                XCTAssertTrue(text.contains(name), text)
            }
        }
    }

    func testAMergeOfUnknownTokensIsRefused() {
        let text = #"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}"#
        XCTAssertThrowsError(
            try Tokenizer(JSON.parse(Array(text.utf8)), configuration: TokenizerConfiguration(.object([]))))
    }

    func testCharactersComeOutWhole() throws {
        var stream = TextStream(try Self.tokenizer())
        XCTAssertEqual([0, 4].map { stream.append($0) }, ["a", ""])
        XCTAssertEqual(stream.append(6), "é")
        XCTAssertEqual(stream.append(5), "")
        // Three of four bytes, then something else; and one byte at the end.
        XCTAssertEqual([7, 8, 9].map { stream.append($0) }, ["", "", ""])
        XCTAssertEqual(stream.append(1), "\u{FFFD}b")
        XCTAssertEqual(stream.append(4), "")
        XCTAssertEqual(stream.finish(), "\u{FFFD}")
        XCTAssertEqual(stream.finish(), "")
        XCTAssertEqual(stream.append(99), "")
        XCTAssertEqual(stream.append(-1), "")
    }

    func testALongWordTakesLittleTime() throws {
        let tokenizer = try Self.tokenizer()
        let start = Date()
        let ids = tokenizer.encode(String(repeating: "ab", count: 100_000))
        XCTAssertEqual(ids.count, 100_000)
        XCTAssertLessThan(Date().timeIntervalSince(start), 20)
    }
}

final class ChatTests: XCTestCase {
    func testFormatsAreRecognized() throws {
        XCTAssertEqual(try ChatTemplate("{{'<|im_start|>'}}").format, .chatML)
        XCTAssertEqual(try ChatTemplate("<|start_header_id|> <|eot_id|>").format, .llama3)
        XCTAssertEqual(try ChatTemplate("m['role'] | capitalize + '<|eot_id|>' 'Assistant: '").format, .bitnet)
        for template in [
            "[INST]", "", "<|start_header_id|>Cutting Knowledge Date: ", "<|im_start|>{{ strftime_now('%d') }}",
        ] {
            XCTAssertThrowsError(try ChatTemplate(template)) { error in
                guard case BitnetError.unsupported = error else { return XCTFail("\(error)") }
            }
        }
    }

    func testTheDefaultSystemMessageIsThatOfTheTemplate() throws {
        XCTAssertNil(
            try ChatTemplate("{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}").defaultSystem)
        let template = #"{{ '<|im_start|>system\nYou are a fox.\nBe one.<|im_end|>\n' }}"#
        XCTAssertEqual(try ChatTemplate(template).defaultSystem, "You are a fox.\nBe one.")
    }

    func testStopTokensComeFromAllFiles() throws {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: directory) }
        let fixtures = Bundle.module.resourceURL!.appendingPathComponent("Fixtures/smollm2")
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            try FileManager.default.copyItem(
                at: fixtures.appendingPathComponent(name), to: directory.appendingPathComponent(name))
        }
        func write(_ text: String, _ name: String) throws {
            try Data(text.utf8).write(to: directory.appendingPathComponent(name))
        }
        let end = try XCTUnwrap(Tokenizer(directory: directory).id(of: "<|im_end|>"))
        XCTAssertEqual(try ChatFiles(directory: directory).stopTokens, [end])
        try write(#"{"eos_token_id": [2, 0]}"#, "generation_config.json")
        XCTAssertEqual(try ChatFiles(directory: directory).stopTokens, [end, 2, 0])
        try write(#"{"eos_token_id": 1}"#, "generation_config.json")
        XCTAssertEqual(try ChatFiles(directory: directory).stopTokens, [end, 1])
        // The template in a file of its own goes first; one that is not covered leaves plain text.
        try write("[INST]", "chat_template.jinja")
        let files = try ChatFiles(directory: directory)
        XCTAssertNil(files.template)
        XCTAssertThrowsError(try files.encode([ChatMessage(.user, "a")])) {
            XCTAssertEqual($0 as? BitnetError, files.templateProblem)
        }
        XCTAssertThrowsError(try ChatFiles(directory: directory.appendingPathComponent("none")))
    }
}

final class CommandTests: XCTestCase {
    func testArguments() throws {
        let command = try Command(
            "m.mlpackage --prompt hello --temperature 0.7 --top-k 40 --seed 3 --compute-units gpu --raw".split(
                separator: " "
            )
            .map(String.init))
        XCTAssertEqual(command.packagePath, "m.mlpackage")
        XCTAssertEqual(command.prompt, "hello")
        XCTAssertEqual(command.sampling.temperature, 0.7)
        XCTAssertEqual(command.sampling.topK, 40)
        XCTAssertEqual(command.sampling.seed, 3)
        XCTAssertEqual(command.units, .gpu)
        XCTAssertTrue(command.raw)
        XCTAssertEqual(command.tokenizerDirectory.lastPathComponent, "m.tokenizer")
        XCTAssertEqual(try Command(["--ids", "a", "--tokenizer", "t"]).tokenizerDirectory.lastPathComponent, "t")
        XCTAssertTrue(try Command(["--help"]).help)
    }

    func testWrongArgumentsAreRefused() {
        for words in [
            "", "--prompt", "m --top-k x", "m --compute-units npu", "m n", "m --what", "m --top-p 2", "--ids a",
        ] {
            XCTAssertThrowsError(try Command(words.split(separator: " ").map(String.init)), words) { error in
                guard case BitnetError.input = error else { return XCTFail("\(error)") }
            }
        }
    }
}

final class PackageNamesTests: XCTestCase {
    func testManifests() throws {
        XCTAssertEqual(try PackageManifest(metadata: [:]).context, nil)
        let metadata = [PackageNames.manifest: #"{"format": 1, "context": 7}"#, PackageNames.modelName: "tiny"]
        XCTAssertEqual(try PackageManifest(metadata: metadata).context, 7)
        XCTAssertEqual(try PackageManifest(metadata: metadata).modelName, "tiny")
        for text in ["{", #"{"format": 2, "context": 7}"#, #"{"format": 1, "context": 0}"#] {
            XCTAssertThrowsError(try PackageManifest(metadata: [PackageNames.manifest: text]))
        }
    }

    func testSizes() {
        XCTAssertEqual(AllowedSizes(1...8).largest(upTo: 5), 5)
        XCTAssertEqual(AllowedSizes(1...8).largest(upTo: 9), 8)
        XCTAssertEqual(AllowedSizes([64, 16]).largest(upTo: 63), 16)
        XCTAssertNil(AllowedSizes([64, 16]).largest(upTo: 15))
        XCTAssertEqual(AllowedSizes([64, 16]).largest, 64)
    }
}
