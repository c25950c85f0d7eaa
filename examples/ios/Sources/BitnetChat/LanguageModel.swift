/// A decoder with a cache of keys and values, one sequence at a time.
///
/// Used by one task at a time. Long work may call `Task.checkCancellation()`.
public protocol LanguageModel: AnyObject {
    /// Most tokens that the cache holds.
    var contextLength: Int { get }
    /// Tokens that the cache holds now.
    var position: Int { get }
    /// Forgets what stands at `position` and after.
    func rewind(to position: Int)
    /// Reads at least one token into the cache; the logits that follow the last.
    ///
    /// After an error, `position` still tells what the cache holds.
    func prefill(_ tokens: ArraySlice<Int>) throws -> [Float]
    /// Reads one token, as `prefill` does.
    func step(_ token: Int) throws -> [Float]
}

extension LanguageModel {
    public func step(_ token: Int) throws -> [Float] { try prefill([token]) }
}

/// The float that 16 bits of IEEE 754 stand for; `Float16` itself is not to be had on Macs with Intel processors.
public func float(half bits: UInt16) -> Float {
    let sign = UInt32(bits & 0x8000) << 16
    let exponent = UInt32(bits >> 10) & 0x1F
    let fraction = UInt32(bits & 0x3FF)
    switch exponent {
    case 0:
        let magnitude = Float(fraction) * 0x1p-24
        return sign == 0 ? magnitude : -magnitude
    case 0x1F: return Float(bitPattern: sign | 0x7F80_0000 | fraction << 13)
    default: return Float(bitPattern: sign | (exponent + 112) << 23 | fraction << 13)
    }
}
