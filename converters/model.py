"""A decoder to convert, whatever it is read from: what it is, its tensors by role, and what stands beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters._roles import CheckpointTensors
from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.families import Family, find
from bitnet_onnx.converters.ternary_scheme import TernaryScheme, ternary_scheme
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, InputError
from bitnet_onnx.package_format import MANIFEST
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

logger = logging.getLogger(__name__)

_TOKEN_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


class Tensors(Protocol):
    """The tensors of a decoder, by role (`layers.0.attn.q_proj.weight`)."""

    def shape(self, role: str) -> tuple[int, ...]:
        """The tensor's shape."""
        ...

    def read(self, role: str) -> FloatArray:
        """A whole tensor as float32."""
        ...

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` of a matrix as float32."""
        ...

    def quantized(self, role: str, /) -> QuantizedTensor | None:
        """The codes and scales of the matrix `role` (no `.weight`), or None where it is stored as floats."""
        ...

    def is_master(self, role: str, /) -> bool:
        """Whether the floats of the matrix `role` (no `.weight`) were trained to be rounded to ternary."""
        ...


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A decoder that is open for reading.

    Attributes:
        path: where it is.
        name: what it calls itself.
        format: `safetensors`, `gguf` or `package`.
        spec: what the decoder is.
        tensors: its weights.
        config: content of config.json.
        generation_config: content of generation_config.json, its token ids checked.
        trained_ternary: the blocks were trained with ternary weights.
        tokenizer: the tokenizer's files by name.
        sha256: waits for that of the weights, which is computed meanwhile.
    """

    path: Path
    name: str
    format: str
    spec: DecoderSpec
    tensors: Tensors
    config: Mapping[str, object]
    generation_config: Mapping[str, object]
    trained_ternary: bool
    tokenizer: Mapping[str, bytes]
    sha256: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Described:
    """A decoder as its configuration describes it.

    Attributes:
        family: whose names the tensors have.
        scheme: how linear layers are stored, where there is a `quantization_config`.
        spec: what the decoder is.
    """

    family: Family
    scheme: TernaryScheme | None
    spec: DecoderSpec


@contextmanager
def open_model(
    path: Path, *, context_length: int | None = None, i2s_layout: str | None = None
) -> Iterator[SourceModel]:
    """Open a Hugging Face directory, a GGUF file or a package of ours.

    Args:
        path: the directory or file.
        context_length: positions to make room for instead of those that the configuration names; with `longrope` it
            also decides which of the two sets of factors is taken.
        i2s_layout: how the I2_S matrices of a GGUF file are laid out.

    Raises:
        CheckpointError: it is broken or contradicts itself.
        UnsupportedError: it is of a kind that is not implemented.
    """
    if (path / MANIFEST).exists():
        from bitnet_onnx.converters.package_model import open_package  # it gives what is defined here

        with open_package(path, context_length=context_length) as package:
            yield package
        return
    with open_checkpoint(path, i2s_layout=i2s_layout) as checkpoint, checkpoint.hashing() as sha256:
        described = describe(Config(checkpoint.config), context_length)
        spec = described.spec
        tensors = CheckpointTensors(checkpoint, described.family, spec, described.scheme)
        tokenizer = checkpoint.tokenizer()
        yield SourceModel(
            path=checkpoint.path,
            name=checkpoint.name,
            format=checkpoint.format,
            spec=spec,
            tensors=tensors,
            config=checkpoint.config,
            generation_config=generation_config_of(
                checkpoint.path, checkpoint.config, checkpoint.generation_config, spec
            ),
            trained_ternary=tensors.trained_ternary,
            tokenizer=tokenizer.files,
            sha256=sha256,
        )
        # An error is one line: what it leaves without use is not warned of.
        if tokenizer.warning:
            logger.warning("%s", tokenizer.warning)


def describe(config: Config, context_length: int | None = None) -> Described:
    """What a configuration says of a decoder.

    Args:
        config: of the checkpoint.
        context_length: see `open_model`.

    Raises:
        CheckpointError: it contradicts itself.
        UnsupportedError: it names something that is not implemented.
        InputError: the decoder has no room for so many positions.
    """
    if context_length is not None:
        config = config.with_values(context_length=context_length)
    family, scheme = find(config), ternary_scheme(config)
    spec = family.spec(config)
    if context_length is not None:
        try:
            spec = replace(spec, context_length=context_length)
        except CheckpointError as error:
            raise InputError(f"--context: {error}") from error
    if scheme is not None:
        spec = replace(spec, linear_norm_epsilon=scheme.linear_norm_epsilon)
    return Described(family, scheme, spec)


def generation_config_of(
    path: Path, config: Mapping[str, object], generation: Mapping[str, object], spec: DecoderSpec
) -> Mapping[str, object]:
    """generation_config.json; where there is none, the token ids of config.json stand for it, as in transformers."""
    config = generation or {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}
    eos = config.get("eos_token_id")
    for token in [] if eos is None else eos if isinstance(eos, list) else [eos]:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < spec.vocab_size:
            raise CheckpointError(
                f"{path.name}: eos_token_id holds {token!r:.40}: expected a token id from 0 to {spec.vocab_size - 1}"
            )
    return config
