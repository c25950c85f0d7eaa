"""A loaded model: prompts and conversations in, tokens and text out."""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.package_format import MODEL_DATA
from bitnet_onnx.runtime._prefault import prefault
from bitnet_onnx.runtime.chat import ChatTemplate, Message, encode_chat
from bitnet_onnx.runtime.devices import Device, auto_select_device
from bitnet_onnx.runtime.generation import CachedSequence, Generation, TokenStream
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.sampling import SamplingParameters
from bitnet_onnx.runtime.session import DecoderSession
from bitnet_onnx.runtime.streaming import Detokenizer
from bitnet_onnx.runtime.tokenizer import TextTokenizer

Messages: TypeAlias = Sequence[Message | Mapping[str, object]]
#: Text to continue, token ids to continue, or messages to answer.
Prompt: TypeAlias = str | Sequence[int] | Messages

#: Tokens that end a turn in one family or another. Each counts where the chat template writes it and the
#: tokenizer has it as a control token, since generation_config.json often names only one of several.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>", "<|end|>", "</s>")
_GREEDY = SamplingParameters()


class Model:
    """A package opened for generation; for one thread at a time.

    Attributes:
        package: the facts of the package.
        device: where it runs.
        session: the decoder graph, for logits.
        tokenizer: text to ids and back.
        stop_ids: every token that ends an answer.

    Raises:
        PackageError: a file of the package is not usable.
    """

    def __init__(self, package: PackageInfo, device: Device, *, threads: int | None = None) -> None:
        started = time.perf_counter()
        self.package = package
        self.device = device
        self.session = DecoderSession(package, device, threads=threads)
        if device.operator_library is not None:  # the function bodies repack the weights and leave these pages alone
            prefault(package.directory / MODEL_DATA)
        self.tokenizer = TextTokenizer(package)
        self.stop_ids = _stop_ids(package, self.tokenizer)
        self._template: ChatTemplate | None = None
        if package.chat_template is not None:
            self._template = ChatTemplate(package.chat_template, package.special_tokens)
        self._last_chat: TokenStream | None = None
        self._load_s = time.perf_counter() - started

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
        elif messages := _messages(prompt):
            ids = self._encode_messages(messages)
        else:
            ids = _checked_ids(prompt, self.package.architecture.vocab_size)
        if not ids:
            raise InputError("the prompt is empty, and the model has no token for the beginning of a text")
        context = self.package.architecture.context_length
        if len(ids) > context:
            raise InputError(f"the prompt has {len(ids)} tokens, more than the model's context of {context}")
        return ids

    def stream(self, prompt: Prompt, parameters: SamplingParameters = _GREEDY) -> TokenStream:
        """Generates token by token until an end token, a stop string, `max_new_tokens` or a full context.

        The prompt is checked now and read with the first token. Messages reuse what the last conversation of
        this model has in its cache; text and ids always start anew, so that equal calls give equal results.

        Raises:
            InputError, UnsupportedError: as `encode`.
            BitnetOnnxError: from the iteration, when the model cannot be run or gives no usable logits.
        """
        ids = self.encode(prompt)
        chat = bool(_messages(prompt))
        stream = TokenStream(
            self.session,
            self._open_sequence(chat),
            # A continued text keeps the space before its next word; an answer is a text of its own.
            Detokenizer(self.tokenizer.decode, () if chat else ids),
            ids,
            parameters,
            stop_ids=self.stop_ids,
            context_length=self.package.architecture.context_length,
            load_s=self._load_s,
        )
        if chat:
            self._last_chat = stream
        return stream

    def generate(self, prompt: Prompt, parameters: SamplingParameters = _GREEDY) -> Generation:
        """As `stream`, all at once."""
        stream = self.stream(prompt, parameters)
        for _ in stream:
            pass
        return stream.result()

    def chat(self, messages: Messages, parameters: SamplingParameters = _GREEDY) -> Generation:
        """Answers a conversation of `{"role": ..., "content": ...}` messages.

        Raises:
            InputError: no messages, or something else; otherwise as `stream`.
        """
        if not _messages(messages):
            raise InputError("chat takes a list of messages with role and content; use generate for text")
        return self.generate(messages, parameters)

    def _open_sequence(self, chat: bool) -> CachedSequence:
        if chat and self._last_chat is not None and self._last_chat.ended:
            return self._last_chat.sequence
        return CachedSequence(self.session.new_cache())

    def _encode_messages(self, messages: Messages) -> list[int]:
        if self._template is None:
            raise UnsupportedError(
                f"{self.package.directory}: the package has no chat template; give a prompt as text instead"
            )
        return encode_chat(self._template, self.tokenizer, [Message.parse(message) for message in messages])


def load(path: str | Path, *, threads: int | None = None, device: Device | None = None) -> Model:
    """Opens a package that `bitnet-onnx convert` wrote.

    Args:
        path: the package directory.
        threads: threads of one operator; None: as many as there are physical cores.
        device: where it runs; None: `auto_select_device()`.

    Raises:
        PackageError: the directory is not a usable package.
    """
    package = PackageInfo.open(path)
    return Model(package, auto_select_device() if device is None else device, threads=threads)


def _messages(prompt: Prompt) -> Messages | None:
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
