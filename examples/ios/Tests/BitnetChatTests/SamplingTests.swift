import XCTest

@testable import BitnetChat

final class SamplingTests: XCTestCase {
    private func settings(_ change: (inout SamplingSettings) -> Void) -> SamplingSettings {
        var settings = SamplingSettings()
        settings.seed = 7
        change(&settings)
        return settings
    }

    private func kept(_ logits: [Float], _ change: (inout SamplingSettings) -> Void) throws -> [Int] {
        try Sampler(settings(change)).distribution(logits).map(\.token)
    }

    func testGreedyTakesTheLowestOfEquals() throws {
        var sampler = try Sampler(SamplingSettings())
        XCTAssertEqual(try sampler.sample([0, 2, -1, 2]), 1)
        XCTAssertEqual(try sampler.sample([-.infinity, -5]), 1)
    }

    func testAPenaltyWeakensWhatWasSeenOnBothSidesOfZero() throws {
        var sampler = try Sampler(settings { $0.repetitionPenalty = 2 })
        sampler.observe([0, 3, 99])
        XCTAssertEqual(try sampler.sample([3, 2, 0, 1]), 1)
        XCTAssertEqual(try sampler.sample([-3, -5, -6, -7]), 1)
    }

    func testFiltersKeepWhatTheirDefinitionsSay() throws {
        // Probabilities 0.4, 0.3, 0.2, 0.1 at the ids 2, 0, 3, 1.
        let logits: [Float] = [0.3, 0.1, 0.4, 0.2].map { Float(log(Double($0))) }
        XCTAssertEqual(try kept(logits) { $0.temperature = 1 }, [0, 1, 2, 3])
        XCTAssertEqual(try kept(logits) { ($0.temperature, $0.topK) = (1, 9) }, [2, 0, 3, 1])
        XCTAssertEqual(try kept(logits) { ($0.temperature, $0.topK) = (1, 2) }, [2, 0])
        XCTAssertEqual(try kept(logits) { ($0.temperature, $0.topP) = (1, 0.69) }, [2, 0])
        XCTAssertEqual(try kept(logits) { ($0.temperature, $0.topP) = (1, 0.71) }, [2, 0, 3])
        // Top-p sees what top-k left: 0.4 of 0.7 reaches a half.
        XCTAssertEqual(try kept(logits) { ($0.temperature, $0.topK, $0.topP) = (1, 2, 0.5) }, [2])
        XCTAssertEqual(try kept(logits) { ($0.temperature, $0.topP) = (1, 0.01) }, [2])
        XCTAssertEqual(try kept([1, 1, 1]) { ($0.temperature, $0.topK) = (1, 2) }, [0, 1])
        XCTAssertEqual(try kept([0, 1, 2]) { ($0.temperature, $0.topK) = (1e-300, 1) }, [2])
        var sampler = try Sampler(settings { $0.temperature = 1e-300 })
        XCTAssertEqual(try sampler.sample([0, 1, 2]), 2)
    }

    /// What is improbable is sorted only where the filters reach it.
    func testFiltersReachAsFarAsTheyMust() throws {
        let logits = (0..<100).map { -Float($0) * 0.5 }
        for topK in [1, 14, 15, 40, 99, 100, 200] {
            let kept = try kept(logits.reversed()) { ($0.temperature, $0.topK) = (1, topK) }
            XCTAssertEqual(kept, (0..<min(topK, 100)).map { 99 - $0 })
        }
        var sum = 0.0
        let all = logits.map { exp(Double($0)) }
        let total = all.reduce(0, +)
        let needed = all.firstIndex { probability in
            sum += probability
            return sum >= 0.99999 * total
        }
        XCTAssertEqual(try kept(logits) { ($0.temperature, $0.topP) = (1, 0.99999) }.count, try XCTUnwrap(needed) + 1)
        let flat = try kept([Float](repeating: 0, count: 5000)) { ($0.temperature, $0.topP) = (1, 0.5) }
        XCTAssertEqual(flat, Array(0..<2500))
    }

    func testTemperatureShapesTheProbabilities() throws {
        let probabilities = try Sampler(settings { $0.temperature = 0.5 }).distribution([0, Float(log(2.0))])
        XCTAssertEqual(probabilities.map(\.token), [0, 1])
        XCTAssertEqual(probabilities[1].probability, 0.8, accuracy: 1e-6)
        XCTAssertEqual(probabilities[0].probability, 0.2, accuracy: 1e-6)
    }

    func testDrawsAreRepeatableAndAsFrequentAsProbable() throws {
        let logits: [Float] = [0.5, 0.2, 0.3].map { Float(log(Double($0))) }
        func draws(_ seed: UInt64) throws -> [Int] {
            var sampler = try Sampler(settings { ($0.temperature, $0.seed) = (1, seed) })
            return try (0..<4000).map { _ in try sampler.sample(logits) }
        }
        let first = try draws(1)
        XCTAssertEqual(first, try draws(1))
        XCTAssertNotEqual(first, try draws(2))
        for (token, expected) in [0.5, 0.2, 0.3].enumerated() {
            let share = Double(first.filter { $0 == token }.count) / 4000
            // Four standard deviations of 4000 draws.
            XCTAssertEqual(share, expected, accuracy: 0.032)
        }
    }

    func testTheGeneratorIsThePublishedOne() {
        var generator = SplitMix64(seed: 1_234_567)
        // The first values of the reference implementation for this seed.
        XCTAssertEqual(generator.next(), 6_457_827_717_110_365_317)
        XCTAssertEqual(generator.next(), 3_203_168_211_198_807_973)
        XCTAssertEqual(generator.next(), 9_817_491_932_198_370_423)
    }

    func testUnusableLogitsAndSettingsAreRefused() throws {
        var sampler = try Sampler(SamplingSettings())
        for logits: [Float] in [[], [0, .nan], [.infinity, 0], [-.infinity]] {
            XCTAssertThrowsError(try sampler.sample(logits)) { XCTAssertTrue($0 is BitnetError) }
        }
        for change: (inout SamplingSettings) -> Void in [
            { $0.temperature = -1 }, { $0.temperature = .nan }, { $0.topK = -1 }, { $0.topP = 0 }, { $0.topP = 1.1 },
            { $0.repetitionPenalty = 0 },
        ] {
            XCTAssertThrowsError(try Sampler(settings(change))) { error in
                guard case BitnetError.input = error else { return XCTFail("\(error)") }
            }
        }
    }

    func testHalfFloats() {
        let cases: [(UInt16, Float)] = [
            (0x0000, 0), (0x3C00, 1), (0xC000, -2), (0x7BFF, 65504), (0x0001, 0x1p-24), (0x83FF, -0x3FFp-24),
            (0x0400, 0x1p-14), (0x3555, 0.333251953125), (0x7C00, .infinity), (0xFC00, -.infinity),
        ]
        for (bits, value) in cases { XCTAssertEqual(float(half: bits), value) }
        XCTAssertTrue(float(half: 0x7E00).isNaN)
        XCTAssertEqual(float(half: 0x8000).sign, .minus)
    }
}
