#if canImport(SwiftUI) && canImport(CoreML)
import BitnetChat
import BitnetCoreML
import SwiftUI

/// A conversation with one model: what was said, a field to write in, and a button that stops the answer.
@MainActor
public struct ChatView: View {
    @State private var conversation: Conversation
    @State private var draft = ""

    /// - Parameters:
    ///   - package: `NAME.mlmodelc` in the app, or an `.mlpackage` that was downloaded.
    ///   - tokenizer: the directory `NAME.tokenizer`.
    public init(package: URL, tokenizer: URL) {
        _conversation = State(initialValue: Conversation(package: package, tokenizer: tokenizer))
    }

    public var body: some View {
        VStack {
            ScrollView {
                LazyVStack(alignment: .leading, spacing: 12) {
                    ForEach(Array(conversation.messages.enumerated()), id: \.offset) { _, message in
                        Text(message.content)
                            .padding(8)
                            .background(message.role == .user ? Color.accentColor.opacity(0.2) : Color.clear)
                            .textSelection(.enabled)
                    }
                    if let problem = conversation.problem { Text(problem).foregroundStyle(.red) }
                }
                .frame(maxWidth: .infinity, alignment: .leading)
            }
            .defaultScrollAnchor(.bottom)
            HStack {
                TextField("Message", text: $draft).onSubmit { send() }
                if conversation.isAnswering {
                    Button("Stop") { conversation.stop() }
                } else {
                    Button("Send") { send() }.disabled(draft.isEmpty || !conversation.isReady)
                }
            }
            if !conversation.status.isEmpty { Text(conversation.status).font(.caption).foregroundStyle(.secondary) }
        }
        .padding()
        .task { await conversation.load() }
    }

    private func send() {
        guard conversation.isReady, !conversation.isAnswering, !draft.isEmpty else { return }
        conversation.ask(draft)
        draft = ""
    }
}
#endif
