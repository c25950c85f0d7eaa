import BitnetChat
import BitnetCoreML
import Foundation

@main
struct BitnetChatCommand {
    static func main() async {
        do {
            let command = try Command(Array(CommandLine.arguments.dropFirst()))
            if command.help {
                print(Command.usage)
                return
            }
            let files = try ChatFiles(directory: command.tokenizerDirectory)
            if let text = command.idsOf {
                print(files.tokenizer.encode(text, parsesSpecial: true).map(String.init).joined(separator: " "))
                return
            }
            try await chat(command, files)
        } catch {
            FileHandle.standardError.write(Data("bitnet-chat: \(error)\n".utf8))
            exit(1)
        }
    }

    #if canImport(CoreML)
    private static func chat(_ command: Command, _ files: ChatFiles) async throws {
        let url = URL(fileURLWithPath: command.packagePath ?? "")
        let model = try await CoreMLLanguageModel.load(url, computeUnits: .init(command.units))
        let generator = Generator(model: model, tokenizer: files.tokenizer)
        let limits = GenerationLimits(maxNewTokens: command.maxNewTokens, stopTokens: files.stopTokens)
        var messages: [ChatMessage] = []
        func answer(_ text: String) async throws {
            messages.append(ChatMessage(.user, text))
            let prompt =
                command.raw
                ? files.tokenizer.encode(text, parsesSpecial: true) : try files.encode(messages)
            var answer = ""
            let stream = generator.stream(prompt, sampling: command.sampling, limits: limits, continues: command.raw)
            for try await event in stream {
                switch event {
                case .text(let piece):
                    answer += piece
                    print(piece, terminator: "")
                    fflush(nil)
                case .end(let summary): report(summary)
                }
            }
            messages.append(ChatMessage(.assistant, answer))
        }
        if let prompt = command.prompt { return try await answer(prompt) }
        while true {
            print("> ", terminator: "")
            fflush(nil)
            guard let line = readLine() else { return }
            if !line.isEmpty { try await answer(line) }
        }
    }

    private static func report(_ summary: GenerationSummary) {
        let read = summary.promptTokens - summary.cachedTokens
        let line = String(
            format: "\n[%d tokens read in %.2f s, %d written at %.1f tokens/s, %@]\n", read, summary.prefillSeconds,
            summary.newTokens, Double(max(summary.newTokens - 1, 0)) / max(summary.decodeSeconds, 1e-9),
            summary.reason.rawValue)
        FileHandle.standardError.write(Data(line.utf8))
    }
    #else
    private static func chat(_ command: Command, _ files: ChatFiles) async throws {
        throw BitnetError.unsupported("models need Core ML, which this platform does not have; --ids works here")
    }
    #endif
}
