"""A loaded model: prompts and conversations in, tokens and text out."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from bitnet_onnx.errors import InputError
from bitnet_onnx.package_format import MODEL_DATA
from bitnet_onnx.runtime._prefault import prefault
from bitnet_onnx.runtime._speculation import IDLE, check_draft_tokens
from bitnet_onnx.runtime.devices import Device, select_device
from bitnet_onnx.runtime.generation import CachedSequence, Generation, TokenStream
from bitnet_onnx.runtime.kv_scales import KvType, scales_for
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.prompts import Messages, Prompt, PromptEncoder, messages_of
from bitnet_onnx.runtime.sampling import SamplingParameters
from bitnet_onnx.runtime.session import DecoderSession
from bitnet_onnx.runtime.streaming import Detokenizer

logger = logging.getLogger(__name__)

_GREEDY = SamplingParameters()


class Model:
    """A package opened for generation; for one thread at a time.

    Args:
        package: the checked package.
        device: where it runs.
        threads: threads of one operator; None: as many as there are physical cores.
        speculate: most tokens guessed at a time from the text so far and read together; answers stay the same. 0: none.
        kv: how keys and values are held; for int8 scales are measured unless the package has them.

    Attributes:
        package: the facts of the package.
        device: where it runs.
        session: the decoder graph, for logits.
        tokenizer: text to ids and back.
        stop_ids: every token that ends an answer.

    Raises:
        InputError: an argument is out of range.
        PackageError: a file of the package is not usable.
        UnsupportedError: the graph has a form that has no int8 cache.
    """

    def __init__(
        self,
        package: PackageInfo,
        device: Device,
        *,
        threads: int | None = None,
        activation_bits: int | None = None,
        speculate: int = 0,
        kv: KvType = "float32",
    ) -> None:
        check_draft_tokens("speculate", speculate)
        started = time.perf_counter()
        self.package = package
        self.device = device
        scales = scales_for(package, device, kv, threads=threads)
        self.session = DecoderSession(
            package, device, threads=threads, activation_bits=activation_bits, kv_scales=scales
        )
        if device.operator_library is not None:  # the function bodies repack the weights and leave these pages alone
            prefault(package.directory / MODEL_DATA)
        self._encoder = PromptEncoder(package)
        self.tokenizer = self._encoder.tokenizer
        self.stop_ids = self._encoder.stop_ids
        if speculate and device.operator_library is None:
            logger.warning(IDLE)
        self._speculate = 0 if device.operator_library is None else speculate
        self._last_chat: TokenStream | None = None
        self._load_s = time.perf_counter() - started

    def encode(self, prompt: Prompt) -> list[int]:
        """As `PromptEncoder.encode`."""
        return self._encoder.encode(prompt)

    def stream(self, prompt: Prompt, parameters: SamplingParameters = _GREEDY) -> TokenStream:
        """Generates token by token until an end token, a stop string, `max_new_tokens` or a full context.

        The prompt is checked now and read with the first token. Messages reuse what the last conversation of
        this model has in its cache; text and ids always start anew, so that equal calls give equal results.

        Raises:
            InputError, UnsupportedError: as `encode`.
            BitnetOnnxError: from the iteration, when the model cannot be run or gives no usable logits.
        """
        ids = self.encode(prompt)
        chat = bool(messages_of(prompt))
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
            speculate=self._speculate,
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
        if not messages_of(messages):
            raise InputError("chat takes a list of messages with role and content; use generate for text")
        return self.generate(messages, parameters)

    def _open_sequence(self, chat: bool) -> CachedSequence:
        if chat and self._last_chat is not None and self._last_chat.ended:
            return self._last_chat.sequence
        return CachedSequence(self.session.new_cache())


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    device: Device | None = None,
    activation_bits: int | None = None,
    speculate: int = 0,
    kv: KvType = "float32",
) -> Model:
    """Opens a package that `bitnet-onnx convert` wrote.

    Args:
        path: the package directory.
        threads: threads of one operator; None: as many as there are physical cores.
        device: where it runs; None: `select_device()`.
        activation_bits: of the linear layers: 8, 16 or 0 (floats); None: as the file says. The vocabulary head takes 16
            and 0, and stays as it is with 8.
        speculate: as in `Model`.
        kv: how keys and values are held: int8 takes a quarter of the memory, and scales that are measured unless
            the package has them.

    Raises:
        InputError: `threads` or `speculate` is out of range.
        PackageError: the directory is not a usable package.
        InputError: there are no such bits, or the package has no layer that rounds activations.
        UnsupportedError: other bits than those of the file need the operator library.
    """
    package = PackageInfo.open(path)
    device = select_device(package.operators) if device is None else device
    return Model(package, device, threads=threads, activation_bits=activation_bits, speculate=speculate, kv=kv)
