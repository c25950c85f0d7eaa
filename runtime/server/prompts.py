"""From what a request holds to token ids, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.runtime.prompts import PromptEncoder, PromptTooLongError
from bitnet_onnx.runtime.server.errors import FieldError
from bitnet_onnx.runtime.server.schemas import ChatMessage

#: OpenAI's newer name of the role that templates know as system.
_ROLES = {"developer": "system"}


class RequestPrompts:
    """Encodes the prompts of requests for one package; for any number of threads."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self.context_length = encoder.package.architecture.context_length
        self.vocab_size = encoder.package.architecture.vocab_size
        self._encoder = encoder

    def text(self, text: str) -> tuple[int, ...]:
        """Token ids of a text to continue, in which the text of a control token becomes that token.

        Raises:
            FieldError: it is empty or longer than the context.
        """
        try:
            return tuple(self._encoder.encode(text))
        except InputError as error:
            raise _refusal("prompt", error) from None

    def ids(self, ids: Sequence[object]) -> tuple[int, ...]:
        """Given token ids.

        Raises:
            FieldError: there are none or too many, or one is no token of the model.
        """
        checked = []
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool):
                raise FieldError("prompt", f"{token!r:.40} is no token id")
            checked.append(token)
        try:
            return tuple(self._encoder.encode(checked))
        except InputError as error:
            raise _refusal("prompt", error) from None

    def conversation(
        self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, object]] | None = None
    ) -> tuple[int, ...]:
        """Token ids of messages by the model's chat template, open for the answer.

        Args:
            messages: at least one.
            tools: what the template is told of them.

        Raises:
            FieldError: the messages do not suit the template, or are longer than the context.
        """
        plain: list[dict[str, object]] = []
        for index, message in enumerate(messages):
            if message.content is None and not message.tool_calls:
                raise FieldError(f"messages.{index}.content", "this field is missing", code="missing_field")
            fields = message.model_dump(exclude_none=True)
            plain.append(fields | {"role": _ROLES.get(message.role, message.role), "content": message.content})
        try:
            return tuple(self._encoder.encode_messages(plain, tools))
        except UnsupportedError:
            raise FieldError(
                "messages", "this model has no chat template; use /v1/completions", code="no_chat_template"
            ) from None
        except InputError as error:
            raise _refusal("messages", error) from None

    def token_text(self, token: int) -> str:
        """The text of one token by itself."""
        return self._encoder.tokenizer.decode([token])


def _refusal(field: str, error: InputError) -> FieldError:
    return FieldError(
        field, str(error), code="context_length_exceeded" if isinstance(error, PromptTooLongError) else None
    )
