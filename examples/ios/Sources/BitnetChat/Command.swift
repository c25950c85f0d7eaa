import Foundation

/// What the terminal program is asked to do.
public struct Command: Sendable, Equatable {
    public enum Units: String, Sendable, CaseIterable { case all, cpu, gpu, ane }

    public var packagePath: String?
    public var tokenizer: String?
    public var prompt: String?
    public var raw = false
    public var idsOf: String?
    public var units = Units.all
    public var sampling = SamplingSettings()
    public var maxNewTokens = 256
    public var help = false

    public static let usage = """
        usage: bitnet-chat NAME.mlpackage [options]
          --tokenizer DIR         files of the tokenizer (NAME.tokenizer beside the package)
          --prompt TEXT           answers TEXT and ends; without it, a conversation
          --raw                   continues the text, without the chat template
          --ids TEXT              prints the token ids of TEXT and ends; needs no package
          --compute-units UNITS   all, cpu, gpu (and cpu) or ane (and cpu); default all
          --max-new-tokens N      default 256
          --temperature T         default 0: greedy
          --top-k K, --top-p P, --repetition-penalty R, --seed S
        """

    /// Throws `BitnetError.input`: an option is unknown or has a wrong value.
    public init(_ arguments: [String]) throws {
        var rest = arguments[...]
        func value<Value>(_ option: String, _ parse: (String) -> Value?) throws -> Value {
            guard let text = rest.popFirst() else { throw BitnetError.input("\(option) needs a value") }
            guard let value = parse(text) else { throw BitnetError.input("\(option) does not take \(text)") }
            return value
        }
        while let argument = rest.popFirst() {
            switch argument {
            case "--help", "-h": help = true
            case "--raw": raw = true
            case "--tokenizer": tokenizer = try value(argument) { $0 }
            case "--prompt": prompt = try value(argument) { $0 }
            case "--ids": idsOf = try value(argument) { $0 }
            case "--compute-units": units = try value(argument, Units.init)
            case "--max-new-tokens": maxNewTokens = try value(argument) { Int($0) }
            case "--temperature": sampling.temperature = try value(argument, Double.init)
            case "--top-k": sampling.topK = try value(argument) { Int($0) }
            case "--top-p": sampling.topP = try value(argument, Double.init)
            case "--repetition-penalty": sampling.repetitionPenalty = try value(argument, Double.init)
            case "--seed": sampling.seed = try value(argument) { UInt64($0) }
            default:
                guard !argument.hasPrefix("-"), packagePath == nil else {
                    throw BitnetError.input("unknown argument \(argument); see --help")
                }
                packagePath = argument
            }
        }
        guard help || packagePath != nil || (idsOf != nil && tokenizer != nil) else {
            throw BitnetError.input("name a package, or a tokenizer and --ids; see --help")
        }
        _ = try Sampler(sampling)
    }

    /// Where the tokenizer lies.
    public var tokenizerDirectory: URL {
        if let tokenizer { return URL(fileURLWithPath: tokenizer, isDirectory: true) }
        return PackageNames.tokenizerDirectory(of: URL(fileURLWithPath: packagePath ?? ""))
    }
}
