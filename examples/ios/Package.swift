// swift-tools-version: 6.0
import PackageDescription

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
        // The model behind `LanguageModel`; empty where there is no Core ML.
        .target(name: "BitnetCoreML", dependencies: ["BitnetChat"]),
        // A view to put into an app; empty where there is no SwiftUI.
        .target(name: "BitnetChatUI", dependencies: ["BitnetChat", "BitnetCoreML"]),
        .executableTarget(name: "bitnet-chat", dependencies: ["BitnetChat", "BitnetCoreML"]),
        .testTarget(name: "BitnetChatTests", dependencies: ["BitnetChat"], resources: [.copy("Fixtures")]),
    ]
)
