"""A decoder in numpy, written from the definitions in `bitnet_onnx.decoder`: what a package has to compute."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.decoder import (
    ATTENTION_INPUTS,
    DecoderSpec,
    MlpActivation,
    Norm,
    NormPlacement,
    QueryKeyNorm,
    Residual,
)
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation._attention import attend
from bitnet_onnx.evaluation._functions import activate, normalize
from bitnet_onnx.evaluation._linear import Linear, LinearRule, apply, look_up
from bitnet_onnx.quantized import FloatArray

#: Of what linear layers and norms give: a few roundings of float32.
NOISE: Final = 4e-7

#: Called after each layer: how many are done, and how many there are.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens from the first position on.

    Attributes:
        ids: of the tokens.
        noise: seed of the noise that is added after every linear layer and norm, or None: how far the results of
            two noisy runs lie apart is how far any float32 implementation may lie from another.
    """

    ids: tuple[int, ...]
    noise: int | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """What one sequence gives.

    Attributes:
        logits: float32 `[T, vocabulary]`.
        hidden: float32 `[T, hidden]` after each layer that was asked for.
    """

    logits: FloatArray
    hidden: Mapping[int, FloatArray]


def forward(
    spec: DecoderSpec,
    tensors: Tensors,
    rule: LinearRule,
    sequences: Sequence[Prompt],
    *,
    layers: Collection[int] = (),
    progress: Progress | None = None,
) -> list[Forward]:
    """Run sequences through a decoder, all of them layer by layer, so that each matrix is read once and dropped.

    Args:
        spec: what the decoder is.
        tensors: norms, biases, and the matrices that are applied as floats.
        rule: how each matrix is applied.
        sequences: independent of each other.
        layers: after which hidden states are kept.
        progress: called after each layer.

    Raises:
        InputError: a sequence is empty, too long, or holds an id outside the vocabulary.
    """
    for sequence in sequences:
        if not 1 <= len(sequence.ids) <= spec.context_length:
            raise InputError(f"a prompt has {len(sequence.ids)} tokens: expected 1 to {spec.context_length}")
        wrong = [token for token in sequence.ids if not 0 <= token < spec.vocab_size]
        if wrong:
            raise InputError(f"token id {wrong[0]} is outside the model's vocabulary of {spec.vocab_size}")
    return _Decoder(spec, tensors, rule, sequences).run(frozenset(layers), progress)


def run_layer(
    spec: DecoderSpec,
    tensors: Tensors,
    rule: LinearRule,
    sequences: Sequence[Prompt],
    index: int,
    hidden: FloatArray | None,
) -> FloatArray:
    """One layer by itself, on an input that is given.

    Args:
        spec: what the decoder is.
        tensors: as of `forward`.
        rule: as of `forward`.
        sequences: as of `forward`; only their lengths and noise count where `hidden` is given.
        index: of the layer.
        hidden: float32 `[tokens of all sequences, hidden]` before it, or None for embedded tokens; left as it is.

    Returns:
        float32 `[tokens of all sequences, hidden]` after it.
    """
    return _Decoder(spec, tensors, rule, sequences).step(index, hidden)


class _Decoder:
    """The tokens of all sequences one behind the other, `[T, width]`; only attention tells them apart."""

    def __init__(self, spec: DecoderSpec, tensors: Tensors, rule: LinearRule, sequences: Sequence[Prompt]) -> None:
        self._spec = spec
        self._tensors = tensors
        self._rule = rule
        ends = np.cumsum([len(sequence.ids) for sequence in sequences])
        self._parts = [
            slice(int(end) - len(sequence.ids), int(end)) for end, sequence in zip(ends, sequences, strict=True)
        ]
        self._ids = np.array([token for sequence in sequences for token in sequence.ids], np.int64)
        self._noise = [
            (part, np.random.default_rng(sequence.noise))
            for part, sequence in zip(self._parts, sequences, strict=True)
            if sequence.noise is not None
        ]

    def run(self, layers: Collection[int], progress: Progress | None) -> list[Forward]:
        """The whole forward pass."""
        spec = self._spec
        hidden: dict[int, FloatArray] = {}
        embedding = self._rule.linear("embed_tokens")
        x = self._embed(embedding)
        if not spec.tie_word_embeddings:
            embedding = Linear()
        for index in range(spec.num_hidden_layers):
            x = self._block(index, x)
            if index in layers:
                hidden[index] = x
            if progress is not None:
                progress(index + 1, spec.num_hidden_layers)
        logits = self._logits(x, embedding)
        return [Forward(logits[part], {index: kept[part] for index, kept in hidden.items()}) for part in self._parts]

    def step(self, index: int, hidden: FloatArray | None) -> FloatArray:
        """One layer."""
        x = self._embed(self._rule.linear("embed_tokens")) if hidden is None else hidden.copy()
        return self._block(index, x)

    def _embed(self, embedding: Linear) -> FloatArray:
        spec = self._spec
        x = look_up(self._ids, embedding, self._tensors, "embed_tokens") * np.float32(spec.embedding_scale)
        if spec.embedding_size:
            x = self._linear("project_in", x, bias=False)
        if spec.learned_positions is not None:
            longest = max(part.stop - part.start for part in self._parts)
            first = spec.learned_positions.offset
            table = self._tensors.read("embed_positions.weight")[first : first + longest]
            for part in self._parts:
                x[part] += table[: part.stop - part.start]
        return x

    def _block(self, index: int, x: FloatArray) -> FloatArray:
        spec, role = self._spec, f"layers.{index}"
        first = self._input(f"{role}.input_norm", x)
        attention = self._attention(index, first)
        match spec.residual:
            case Residual.SEQUENTIAL:
                x = self._add(f"{role}.attn", x, attention)
                return self._add(f"{role}.mlp", x, self._mlp(role, self._input(f"{role}.post_attention_norm", x)))
            case Residual.PARALLEL:
                mlp = self._mlp(role, self._input(f"{role}.post_attention_norm", x))
            case Residual.PARALLEL_SHARED_NORM:
                mlp = self._mlp(role, first)
        return self._add(f"{role}.mlp", self._add(f"{role}.attn", x, attention), mlp)

    def _input(self, role: str, x: FloatArray) -> FloatArray:
        """What attention or the MLP reads."""
        return self._norm(role, x) if self._spec.placement in {NormPlacement.INPUT, NormPlacement.BOTH} else x

    def _add(self, branch: str, x: FloatArray, y: FloatArray) -> FloatArray:
        """The residual stream after attention or the MLP."""
        placement = self._spec.placement
        if placement in {NormPlacement.OUTPUT, NormPlacement.BOTH}:
            y = self._norm(f"{branch}.output_norm", y)
        x = x + y * np.float32(self._spec.residual_scale)
        return self._norm(f"{branch}.residual_norm", x) if placement is NormPlacement.RESIDUAL else x

    def _attention(self, index: int, x: FloatArray) -> FloatArray:
        spec, role = self._spec, f"layers.{index}.attn"
        query, key, value = (self._linear(f"{role}.{name}", x, bias=spec.qkv_bias) for name in ATTENTION_INPUTS)
        if spec.query_key_norm is QueryKeyNorm.ALL:
            query, key = self._norm(f"{role}.query_norm", query), self._norm(f"{role}.key_norm", key)
        query, key, value = (part.reshape(len(x), -1, spec.head_dim) for part in (query, key, value))
        if spec.query_key_norm is QueryKeyNorm.HEAD:
            query, key = self._norm(f"{role}.query_norm", query), self._norm(f"{role}.key_norm", key)
        attended = np.concatenate(
            [attend(query[part], key[part], value[part], spec, spec.layer(index)) for part in self._parts]
        )
        if spec.attention_sub_norm:
            attended = self._norm(f"{role}.sub_norm", attended)
        return self._linear(f"{role}.o_proj", attended, bias=spec.output_bias)

    def _mlp(self, layer: str, x: FloatArray) -> FloatArray:
        spec, role = self._spec, f"{layer}.mlp"
        activation = MlpActivation(spec.activation)
        up = self._linear(f"{role}.up_proj", x, bias=spec.mlp_bias)
        if spec.gated:
            inner = activate(self._linear(f"{role}.gate_proj", x, bias=spec.mlp_bias), activation) * up
        else:
            inner = activate(up, activation)
        if spec.mlp_sub_norm:
            inner = self._norm(f"{role}.sub_norm", inner)
        return self._linear(f"{role}.down_proj", inner, bias=spec.mlp_bias)

    def _logits(self, x: FloatArray, embedding: Linear) -> FloatArray:
        spec = self._spec
        if spec.has_final_norm:
            x = self._norm("norm", x)
        if spec.embedding_size:
            x = self._linear("project_out", x, bias=False)
        if spec.tie_word_embeddings:
            logits = apply(x, embedding, self._tensors, "embed_tokens")
        else:
            logits = apply(x, self._rule.linear("lm_head"), self._tensors, "lm_head")
        if spec.head_bias:
            logits += self._tensors.read("lm_head.bias")
        logits *= np.float32(spec.logit_scale)
        if spec.logit_softcap:
            logits = np.float32(spec.logit_softcap) * np.tanh(logits / np.float32(spec.logit_softcap))
        return logits

    def _linear(self, role: str, x: FloatArray, *, bias: bool) -> FloatArray:
        epsilon = self._spec.linear_norm_epsilon
        if epsilon is not None and role.startswith("layers."):
            x = self._shaken(normalize(x, Norm.RMS, self._tensors.read(f"{role}.norm.weight"), None, epsilon))
        y = apply(x, self._rule.linear(role), self._tensors, role)
        if bias:
            y += self._tensors.read(f"{role}.bias")
        return self._shaken(y)

    def _norm(self, role: str, x: FloatArray) -> FloatArray:
        spec = self._spec
        bias = self._tensors.read(f"{role}.bias") if spec.norm is Norm.LAYER else None
        weight = self._tensors.read(f"{role}.weight")
        return self._shaken(normalize(x, spec.norm, weight, bias, spec.norm_epsilon))

    def _shaken(self, x: FloatArray) -> FloatArray:
        """With noise on the sequences that asked for it; changes its argument."""
        for part, generator in self._noise:
            factor = generator.standard_normal(x[part].shape, np.float32)
            x[part] *= 1 + factor * np.float32(NOISE)
        return x
