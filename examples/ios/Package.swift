// swift-tools-version: 6.0
import PackageDescription

// Where there is no Core ML, the code that calls it can be built and tested against a stand-in.
let standsIn = Context.environment["BITNET_CHAT_STAND_IN"] != nil
let coreML: [Target.Dependency] = standsIn ? ["CoreML"] : []

let package = Package(
    name: "BitnetChat",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "BitnetChat", targets: ["BitnetChat"]),
        .library(name: "BitnetCoreML", targets: ["BitnetCoreML"]),
        .library(name: "BitnetChatUI", targets: ["BitnetChatUI"]),
    ],
    targets: [
        // Tokenizer, sampling, chat templates, generation: Foundation only, on every platform.
        .target(name: "BitnetChat"),
        // The model behind `LanguageModel`; empty where there is no Core ML. Language mode 5, since Apple's annotations
        // for concurrency differ from one SDK to the next.
        .target(name: "BitnetCoreML", dependencies: ["BitnetChat"] + coreML, swiftSettings: [.swiftLanguageMode(.v5)]),
        // A view to put into an app; empty where there is no SwiftUI.
        .target(
            name: "BitnetChatUI", dependencies: ["BitnetChat", "BitnetCoreML"] + coreML,
            swiftSettings: [.swiftLanguageMode(.v5)]),
        .executableTarget(name: "bitnet-chat", dependencies: ["BitnetChat", "BitnetCoreML"] + coreML),
        .testTarget(name: "BitnetChatTests", dependencies: ["BitnetChat"], resources: [.copy("Fixtures")]),
    ]
)

if standsIn {
    package.targets += [
        .target(name: "CoreML", path: "Tests/CoreMLStandIn"),
        .testTarget(
            name: "BitnetCoreMLTests", dependencies: ["BitnetChat", "BitnetCoreML", "BitnetChatUI", "CoreML"],
            // The Observation library of Swift 6.0 for Linux lacks a symbol that only its failures need.
            linkerSettings: [.unsafeFlags(["-Xlinker", "--allow-shlib-undefined"])]),
    ]
}
