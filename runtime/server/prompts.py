"""From what a request holds to token ids, within the context."""

from __future__ import annotations

from collections.abc import Sequence

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.chat import ChatTemplate, Message, encode_chat
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.server.errors import FieldError
from bitnet_onnx.runtime.server.schemas import ChatMessage
from bitnet_onnx.runtime.tokenizer import TextTokenizer

#: OpenAI's newer name of the role that templates know as system.
_ROLES = {"developer": "system"}


class PromptEncoder:
    """Encodes prompts for one package; for any number of threads."""

    def __init__(self, package: PackageInfo, tokenizer: TextTokenizer) -> None:
        self.context_length = package.architecture.context_length
        self.vocab_size = package.architecture.vocab_size
        self._tokenizer = tokenizer
        self._template: ChatTemplate | None = None
        if package.chat_template is not None:
            self._template = ChatTemplate(package.chat_template, package.special_tokens)

    def text(self, text: str) -> tuple[int, ...]:
        """Token ids of a text to continue, in which the text of a control token becomes that token.

        Raises:
            FieldError: it is empty or longer than the context.
        """
        try:
            ids = self._tokenizer.encode(text, parse_special=True, add_bos=True)
        except InputError as error:
            raise FieldError("prompt", str(error)) from None
        if not ids and self._tokenizer.bos_id is not None:
            ids = [self._tokenizer.bos_id]
        return self.checked(ids, "prompt")

    def ids(self, ids: Sequence[object]) -> tuple[int, ...]:
        """Given token ids.

        Raises:
            FieldError: there are none or too many, or one is no token of the model.
        """
        if len(ids) > self.context_length:
            raise self._too_long(len(ids), "prompt")
        checked = []
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < self.vocab_size:
                raise FieldError("prompt", f"token {token!r:.40} is no integer from 0 to {self.vocab_size - 1}")
            checked.append(token)
        return self.checked(checked, "prompt")

    def conversation(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Token ids of messages by the model's chat template, open for the answer.

        Raises:
            FieldError: the messages do not suit the template, or are longer than the context.
        """
        if self._template is None:
            raise FieldError(
                "messages", "this model has no chat template; use /v1/completions", code="no_chat_template"
            )
        plain = []
        for index, message in enumerate(messages):
            for name in ("tool_calls", "tool_call_id"):
                if getattr(message, name):
                    raise FieldError(f"messages.{index}.{name}", "a conversation with tools must name them in `tools`")
            if message.content is None:
                raise FieldError(f"messages.{index}.content", "this field is missing", code="missing_field")
            try:
                plain.append(Message(_ROLES.get(message.role, message.role), message.content))
            except InputError as error:
                raise FieldError(f"messages.{index}", str(error)) from None
        try:
            ids = encode_chat(self._template, self._tokenizer, plain)
        except InputError as error:
            raise FieldError("messages", str(error)) from None
        return self.checked(ids, "messages")

    def token_text(self, token: int) -> str:
        """The text of one token by itself."""
        return self._tokenizer.decode([token])

    def checked(self, ids: Sequence[int], param: str) -> tuple[int, ...]:
        """The ids of a prompt.

        Raises:
            FieldError: there are none or too many.
        """
        if not ids:
            raise FieldError(param, "the prompt is empty, and the model has no token for the beginning of a text")
        if len(ids) > self.context_length:
            raise self._too_long(len(ids), param)
        return tuple(ids)

    def _too_long(self, count: int, param: str) -> FieldError:
        return FieldError(
            param,
            f"the prompt has {count} tokens, more than the model's context of {self.context_length}",
            code="context_length_exceeded",
        )
