"""Packages of real sizes with random ternary weights, through the emitter that converts real ones."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.converters.onnx._directory import new_directory
from bitnet_onnx.converters.onnx.bodies import Fallback
from bitnet_onnx.converters.onnx.package import write_package
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.package_format import TOKENIZER
from bitnet_onnx.policy import HEAD_ROLES, Policy, Precision, Weights
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

#: Ternary matrices are recognized and kept, the head becomes int8: what a real ternary checkpoint gets.
POLICY: Final = Policy(default=Precision(Weights.KEEP))
#: Characters of the tokens that merges are made of, so that none grows without end.
_LONGEST_PART = 4


class RandomTensors:
    """The tensors of a decoder that nobody trained, the same in every run.

    Linear layers are {-a, 0, a} with an `a` that keeps activations near one, the embedding and the head normal,
    norms one and biases zero.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        self._shapes = dict(spec.tensors())

    def shape(self, role: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._shapes[role]

    def read(self, role: str) -> FloatArray:
        """A whole tensor as float32."""
        shape = self._shapes[role]
        if len(shape) == 2:
            return self.read_rows(role, 0, shape[0])
        return np.full(shape, 0 if role.endswith(".bias") else 1, np.float32)

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` of a matrix as float32; other bounds give other values."""
        size = (stop - start, self._shapes[role][1])
        rng = np.random.default_rng([zlib.crc32(role.encode()), start])
        if role.removesuffix(".weight") in HEAD_ROLES:
            return rng.standard_normal(size, np.float32)
        step = np.float32((1.5 / size[1]) ** 0.5)
        return rng.integers(-1, 2, size, np.int8).astype(np.float32) * step

    def quantized(self, _: str) -> QuantizedTensor | None:
        """Everything is made as floats."""
        return None

    def is_master(self, _: str) -> bool:
        """Weights are ternary, not masters of ternary ones."""
        return False


def write_random_package(spec: DecoderSpec, target: Path, name: str) -> None:
    """Write a package of random weights; what was there before is replaced."""
    model = SourceModel(
        path=target,
        name=name,
        format="random weights",
        spec=spec,
        tensors=RandomTensors(spec),
        config={"model_type": spec.family},
        generation_config={},
        trained_ternary=False,
        tokenizer={TOKENIZER: random_tokenizer(spec.vocab_size).to_str().encode()},
        sha256=str,
    )
    with new_directory(target, overwrite=True) as work:
        write_package(work, model, policy=POLICY, fallback=Fallback.FAST)


def random_tokenizer(vocab_size: int) -> Tokenizer:
    """Bytes and random merges up to the vocabulary's size: it takes as long to load as a real one."""
    parts = sorted(pre_tokenizers.ByteLevel.alphabet())[:vocab_size]
    vocabulary = {token: index for index, token in enumerate(parts)}
    merges: list[tuple[str, str]] = []
    rng = np.random.default_rng(0)
    while len(vocabulary) < vocab_size:
        left, right = (parts[index] for index in rng.integers(0, len(parts), 2))
        token = left + right
        if token not in vocabulary:
            vocabulary[token] = len(vocabulary)
            merges.append((left, right))
            if len(token) <= _LONGEST_PART:
                parts.append(token)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
