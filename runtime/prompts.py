"""Prompts to token ids, and the tokens that end an answer."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.runtime.chat import ChatTemplate, Message, encode_chat
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.tokenizer import TextTokenizer

Messages: TypeAlias = Sequence[Message | Mapping[str, object]]
#: Text to continue, token ids to continue, or messages to answer.
Prompt: TypeAlias = str | Sequence[int] | Messages

#: Tokens that end a turn in one family or another. Each counts where the chat template writes it and the
#: tokenizer has it as a control token, since generation_config.json often names only one of several.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>", "<|end|>", "</s>")


class PromptTooLongError(InputError):
    """A prompt has more tokens than the model's context."""


class PromptEncoder:
    """The text side of a package.

    Attributes:
        package: the facts of the package.
        tokenizer: text to ids and back.
        stop_ids: every token that ends an answer.

    Raises:
        PackageError: the tokenizer or the chat template is not usable.
    """

    def __init__(self, package: PackageInfo) -> None:
        self.package = package
        self.tokenizer = TextTokenizer(package)
        self.stop_ids = _stop_ids(package, self.tokenizer)
        self._template: ChatTemplate | None = None
        if package.chat_template is not None:
            self._template = ChatTemplate(package.chat_template, package.special_tokens)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: text (control tokens are parsed), ids (checked) or messages (templated).

        Raises:
            InputError: the prompt is empty, of another type, or longer than the context.
            UnsupportedError: messages, but the package has no chat template.
        """
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, parse_special=True, add_bos=True)
            if not ids and self.tokenizer.bos_id is not None:
                ids = [self.tokenizer.bos_id]
        elif messages := messages_of(prompt):
            return self.encode_messages(messages)
        else:
            ids = _checked_ids(prompt, self.package.architecture.vocab_size)
        return self._checked(ids)

    def encode_messages(self, messages: Messages, tools: Sequence[Mapping[str, object]] | None = None) -> list[int]:
        """Token ids of a conversation by the chat template, open for the answer.

        Args:
            messages: at least one.
            tools: for the template, in OpenAI's form.

        Raises:
            InputError, UnsupportedError: as `encode`.
        """
        if self._template is None:
            raise UnsupportedError(
                f"{self.package.directory}: the package has no chat template; give a prompt as text instead"
            )
        ids = encode_chat(self._template, self.tokenizer, [Message.parse(message) for message in messages], tools)
        return self._checked(ids)

    def close(self) -> None:
        """Ends what the chat template runs in; text and ids can still be encoded."""
        if self._template is not None:
            self._template.close()

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise InputError("the prompt is empty, and the model has no token for the beginning of a text")
        context = self.package.architecture.context_length
        if len(ids) > context:
            raise PromptTooLongError(f"the prompt has {len(ids)} tokens, more than the model's context of {context}")
        return ids


def messages_of(prompt: Prompt) -> Messages | None:
    """`prompt` if it is a list that begins with a message."""
    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Message | Mapping):
        return prompt  # type: ignore[return-value]  # each element is checked by Message.parse
    return None


def _checked_ids(prompt: object, vocab_size: int) -> list[int]:
    try:
        ids = [operator.index(token) for token in prompt]  # type: ignore[attr-defined]  # that is the check
    except TypeError:
        raise InputError("a prompt is a text, a list of token ids, or a list of messages") from None
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InputError(f"token id {token} is outside the model's vocabulary of {vocab_size}")
    return ids


def _stop_ids(package: PackageInfo, tokenizer: TextTokenizer) -> frozenset[int]:
    names = [text for text in _TURN_ENDS if package.chat_template is not None and text in package.chat_template]
    if "eos_token" in package.special_tokens:
        names.append(package.special_tokens["eos_token"])
    ids = {token for name in names if (token := tokenizer.token_id(name)) in tokenizer.control_ids}
    return frozenset(package.eos_token_ids) | ids
