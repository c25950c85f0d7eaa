// The whole of an app: an Xcode project with this file, the package BitnetChatUI, and the model as resources.
import BitnetChatUI
import SwiftUI

@main
struct BitnetChatApp: App {
    /// The name of the package in the app, without its ending.
    private static let model = "Model"

    var body: some Scene {
        WindowGroup {
            // Xcode compiles NAME.mlpackage into NAME.mlmodelc; NAME.tokenizer is added as a folder.
            if let package = Bundle.main.url(forResource: Self.model, withExtension: "mlmodelc"),
                let tokenizer = Bundle.main.url(forResource: Self.model, withExtension: "tokenizer")
            {
                ChatView(package: package, tokenizer: tokenizer)
            } else {
                Text("The app holds no \(Self.model).mlpackage or no folder \(Self.model).tokenizer.")
            }
        }
    }
}
