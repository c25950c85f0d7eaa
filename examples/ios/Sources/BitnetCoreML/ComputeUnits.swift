#if canImport(CoreML)
import BitnetChat
import CoreML

extension MLComputeUnits {
    /// Core ML's name of what was asked for; the CPU is always among them.
    public init(_ units: Command.Units) {
        switch units {
        case .all: self = .all
        case .cpu: self = .cpuOnly
        case .gpu: self = .cpuAndGPU
        case .ane: self = .cpuAndNeuralEngine
        }
    }
}
#endif
