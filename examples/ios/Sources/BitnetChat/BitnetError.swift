import Foundation

/// What went wrong, in one line that names the file or value and what to do.
public enum BitnetError: Error, LocalizedError, CustomStringConvertible, Equatable {
    /// A file is missing or broken.
    case file(String)
    /// A file asks for something that this package does not do.
    case unsupported(String)
    /// An argument is out of range.
    case input(String)
    /// The model gave no usable result.
    case model(String)

    public var description: String {
        switch self {
        case .file(let text), .unsupported(let text), .input(let text), .model(let text): text
        }
    }

    public var errorDescription: String? { description }
}
