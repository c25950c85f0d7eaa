import Foundation

/// How the next token is chosen.
public struct SamplingSettings: Sendable, Equatable {
    /// Divides the logits; 0 is greedy, and then the other fields but `repetitionPenalty` are idle.
    public var temperature: Double = 0
    /// Keeps the k most probable tokens; 0 keeps all.
    public var topK: Int = 0
    /// Keeps the fewest most probable tokens whose probabilities reach this sum, above 0 and at most 1.
    public var topP: Double = 1
    /// Divides positive and multiplies negative logits of tokens in the context; 1 is off.
    public var repetitionPenalty: Double = 1
    /// Makes a run repeatable; nil draws fresh entropy.
    public var seed: UInt64?

    public init() {}

    func check() throws {
        guard temperature.isFinite, temperature >= 0 else {
            throw BitnetError.input("temperature is \(temperature), expected at least 0")
        }
        guard topK >= 0 else { throw BitnetError.input("topK is \(topK), expected at least 0") }
        guard topP > 0, topP <= 1 else { throw BitnetError.input("topP is \(topP), expected above 0 and at most 1") }
        guard repetitionPenalty.isFinite, repetitionPenalty > 0 else {
            throw BitnetError.input("repetitionPenalty is \(repetitionPenalty), expected above 0")
        }
    }
}

/// Draws tokens by one set of settings, in the order of `bitnet-onnx`: penalty, temperature, top-k, top-p, one draw.
public struct Sampler: Sendable {
    private let settings: SamplingSettings
    private var generator: SplitMix64
    private var seen: Set<Int> = []

    /// Throws `BitnetError.input`: a setting is out of range.
    public init(_ settings: SamplingSettings) throws {
        try settings.check()
        self.settings = settings
        generator = SplitMix64(seed: settings.seed ?? .random(in: .min ... .max))
    }

    /// Tells which tokens stand in the context, for the penalty.
    public mutating func observe(_ ids: some Sequence<Int>) {
        if settings.repetitionPenalty != 1 { seen.formUnion(ids) }
    }

    /// The next token for the logits of a vocabulary; greedy is the largest, the lowest id among equals.
    ///
    /// Throws `BitnetError.model`: a logit is NaN, or the largest is infinite.
    public mutating func sample(_ logits: [Float]) throws -> Int {
        let choices = try distribution(logits)
        guard choices.count > 1 else { return choices[0].token }
        // A share of the sum: rounding then cannot leave the draw without a token.
        var left = generator.unit() * choices.reduce(0) { $0 + $1.probability }
        for choice in choices {
            left -= choice.probability
            if left < 0 { return choice.token }
        }
        return choices[choices.count - 1].token
    }

    typealias Choice = (token: Int, probability: Double)

    /// What is drawn from: tokens that the filters keep, if any with the most probable first; probabilities sum to 1.
    func distribution(_ logits: [Float]) throws -> [Choice] {
        var scores = logits.map(Double.init)
        for token in seen where scores.indices.contains(token) {
            let penalty = settings.repetitionPenalty
            scores[token] = scores[token] > 0 ? scores[token] / penalty : scores[token] * penalty
        }
        var best = 0
        for (token, score) in scores.enumerated() {
            guard !score.isNaN else { throw BitnetError.model("logit \(token) is NaN: convert the model again") }
            if score > scores[best] { best = token }
        }
        guard !scores.isEmpty, scores[best].isFinite else {
            throw BitnetError.model("the largest logit is not finite: convert the model again")
        }
        guard settings.temperature > 0 else { return [(best, 1)] }
        // The largest becomes 0 first: a tiny temperature then cannot overflow.
        let top = scores[best]
        var choices = scores.enumerated().map { token, score in
            Choice(token: token, probability: exp((score - top) / settings.temperature))
        }
        guard settings.topK > 0 || settings.topP < 1 else { return normalized(choices) }
        var sum = choices.reduce(0) { $0 + $1.probability }
        choices = mostProbable(choices, of: sum)
        choices.sort { ($1.probability, $0.token) < ($0.probability, $1.token) }
        if settings.topK > 0 {
            choices.removeLast(max(0, choices.count - settings.topK))
            sum = choices.reduce(0) { $0 + $1.probability }
        }
        var kept = 0.0
        let needed = choices.firstIndex { choice in
            kept += choice.probability
            return kept >= settings.topP * sum
        }
        if settings.topP < 1, let needed { choices.removeLast(choices.count - needed - 1) }
        return normalized(choices)
    }

    private func normalized(_ choices: [Choice]) -> [Choice] {
        let sum = choices.reduce(0) { $0 + $1.probability }
        return choices.map { ($0.token, $0.probability / sum) }
    }

    /// All choices above a limit, as many as hold what the filters keep: sorting a whole vocabulary takes longer than
    /// some models do.
    private func mostProbable(_ choices: [Choice], of sum: Double) -> [Choice] {
        for limit in [1e-3, 1e-6, 1e-12] {
            let best = choices.filter { $0.probability >= limit }
            let held = best.reduce(0) { $0 + $1.probability }
            let enough = settings.topK > 0 ? best.count >= settings.topK : held >= settings.topP * sum
            if enough { return best }
        }
        return choices
    }
}

/// The generator of Steele, Lea and Flood (2014), which is the same on every platform.
struct SplitMix64: RandomNumberGenerator, Sendable {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }

    /// A number in [0, 1), a multiple of 2^-53.
    mutating func unit() -> Double { Double(next() >> 11) * 0x1p-53 }
}
