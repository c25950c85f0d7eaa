"""Decoders of every option with random weights, and packages of them, without a checkpoint in between."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.converters.onnx.bodies import Fallback
from bitnet_onnx.converters.onnx.package import write_package
from bitnet_onnx.decoder import (
    Attention,
    DecoderSpec,
    LearnedPositions,
    MlpActivation,
    Norm,
    NormPlacement,
    QueryKeyNorm,
    Residual,
    Rotary,
)
from bitnet_onnx.package_format import Operators
from bitnet_onnx.policy import Policy, Precision, Weights

FLOAT = Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))

_ROTARY = Rotary(10000.0, 16)
BASE = DecoderSpec(
    family="llama",
    vocab_size=211,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    context_length=160,
    norm_epsilon=1e-5,
    activation="silu",
    attention=(Attention(_ROTARY),),
)


def _rotary(**changes: object) -> tuple[Attention, ...]:
    return (Attention(replace(_ROTARY, **changes)),)


def _head(head_dim: int, dim: int, **changes: object) -> DecoderSpec:
    return replace(BASE, head_dim=head_dim, attention=(Attention(replace(_ROTARY, dim=dim, **changes)),))


_LAYER = replace(BASE, norm=Norm.LAYER, qkv_bias=True, output_bias=True, mlp_bias=True)
_PLAIN = replace(BASE, gated=False, activation="gelu")
_DIVISORS = tuple(1 + 0.75 * index for index in range(8))
_ALTERNATING = (Attention(_ROTARY, window=5), Attention(replace(_ROTARY, theta=1e6)))

SPECS: dict[str, DecoderSpec] = {
    "base": BASE,
    "one head for each query": replace(BASE, num_key_value_heads=4),
    "one key head": replace(BASE, num_key_value_heads=1),
    "tied": replace(BASE, tie_word_embeddings=True),
    "biases": replace(BASE, qkv_bias=True, output_bias=True, mlp_bias=True, head_bias=True),
    "only qkv bias": replace(BASE, qkv_bias=True),
    "layer norms": _LAYER,
    "layer norms and tied head with bias": replace(_LAYER, tie_word_embeddings=True, head_bias=True),
    **{
        f"norms: {placement}, {norm}": replace(BASE, placement=placement, norm=norm)
        for placement in NormPlacement
        for norm in Norm
    },
    **{
        f"{residual}, {placement}": replace(BASE, residual=residual, placement=placement)
        for residual in (Residual.PARALLEL, Residual.PARALLEL_SHARED_NORM)
        for placement in (NormPlacement.INPUT, NormPlacement.OUTPUT, NormPlacement.BOTH)
    },
    "parallel with layer norms": replace(_LAYER, residual=Residual.PARALLEL),
    "parallel, one layer norm": replace(_LAYER, residual=Residual.PARALLEL_SHARED_NORM, gated=False),
    **{
        f"query and key norms: {which}, {norm}": replace(BASE, query_key_norm=which, norm=norm)
        for which in (QueryKeyNorm.HEAD, QueryKeyNorm.ALL)
        for norm in Norm
    },
    **{f"gated {name}": replace(BASE, activation=str(name)) for name in MlpActivation},
    **{f"plain {name}": replace(_PLAIN, activation=str(name)) for name in MlpActivation},
    "plain with bias": replace(_PLAIN, mlp_bias=True),
    "learned positions": replace(BASE, attention=(Attention(),), learned_positions=LearnedPositions(160)),
    "learned positions with offset": replace(
        BASE, attention=(Attention(),), learned_positions=LearnedPositions(170, 2)
    ),
    "learned positions and rotary": replace(BASE, learned_positions=LearnedPositions(162, 2)),
    "no positions": replace(BASE, attention=(Attention(),)),
    "rotary: interleaved": replace(BASE, attention=_rotary(interleaved=True)),
    "rotary: divisors": replace(BASE, attention=_rotary(divisors=_DIVISORS)),
    "rotary: magnitude": replace(BASE, attention=_rotary(divisors=_DIVISORS, magnitude=1.25)),
    "rotary: dynamic": replace(BASE, attention=_rotary(dynamic_factor=2.0, original_context=16)),
    "rotary: dynamic beyond the context": replace(BASE, attention=_rotary(dynamic_factor=2.0, original_context=999)),
    "rotary: partial": _head(32, 16),
    "rotary: partial, interleaved": _head(32, 16, interleaved=True),
    "rotary in one layer of two": replace(BASE, attention=(Attention(_ROTARY), Attention())),
    "window": replace(BASE, attention=(Attention(_ROTARY, window=7),)),
    "window of one": replace(BASE, attention=(Attention(_ROTARY, window=1),)),
    "window wider than the context": replace(BASE, attention=(Attention(_ROTARY, window=4096),)),
    "windows and rotations that alternate": replace(BASE, attention=_ALTERNATING),
    "soft caps": replace(BASE, attention_softcap=3.0, logit_softcap=2.0),
    "scales": replace(BASE, attention_scale=0.11, embedding_scale=1.7, residual_scale=0.6, logit_scale=0.3),
    "scales and norms behind": replace(
        BASE, placement=NormPlacement.BOTH, residual_scale=0.6, attention_scale=1.0, embedding_scale=8.0
    ),
    "sub-norms": replace(BASE, attention_sub_norm=True, mlp_sub_norm=True, activation="relu2"),
    "layer sub-norms": replace(_LAYER, attention_sub_norm=True, mlp_sub_norm=True),
    "norms in linear layers": replace(BASE, linear_norm_epsilon=1e-6),
    "norms in linear layers with biases": replace(
        BASE, linear_norm_epsilon=1e-3, qkv_bias=True, mlp_bias=True, output_bias=True, attention_sub_norm=True
    ),
    "norms in linear layers, no others": replace(
        BASE, linear_norm_epsilon=1e-6, placement=NormPlacement.OUTPUT, gated=False
    ),
    "projected embedding": replace(BASE, embedding_size=48),
    "projected embedding, tied, norms after the sum": replace(
        _LAYER,
        embedding_size=48,
        tie_word_embeddings=True,
        placement=NormPlacement.RESIDUAL,
        gated=False,
        activation="relu",
        attention=(Attention(),),
        learned_positions=LearnedPositions(162, 2),
    ),
    "epsilons": replace(BASE, norm_epsilon=0.1, linear_norm_epsilon=0.3),
    "like gemma 2": replace(
        BASE,
        placement=NormPlacement.BOTH,
        attention=_ALTERNATING,
        activation="gelu_tanh",
        attention_softcap=5.0,
        logit_softcap=3.0,
        embedding_scale=8.0,
        attention_scale=0.2,
        tie_word_embeddings=True,
    ),
    "like gpt-neox": replace(
        _LAYER, head_dim=32, attention=(Attention(replace(_ROTARY, dim=16)),), residual=Residual.PARALLEL, gated=False
    ),
}

#: Sizes of a head, with how much of it is rotated: those that ONNX Runtime's attention rotates, and others.
HEADS = [(64, 32), (80, 32), (96, 48), (80, 20), (96, 24), (64, 8), (64, 20), (24, 24), (40, 40), (24, 16), (8, 4)]
SPECS |= {
    f"{rotary} of {head} features rotated{', interleaved' if pairs else ''}": _head(head, rotary, interleaved=pairs)
    for head, rotary in HEADS
    for pairs in (False, True)
}
SPECS |= {
    "small head without rotary": replace(BASE, head_dim=24, attention=(Attention(),)),
    "rotated apart, with query and key norms": replace(
        _head(80, 20), query_key_norm=QueryKeyNorm.HEAD, num_key_value_heads=4, num_attention_heads=4
    ),
    "rotated apart, in one layer": replace(
        BASE, head_dim=24, attention=(Attention(replace(_ROTARY, dim=24), window=6), Attention())
    ),
}


class RandomDecoder:
    """Tensors that keep activations near one; norms and biases are random too, so that none can be left out."""

    def __init__(self, spec: DecoderSpec, seed: int = 0) -> None:
        self._shapes = dict(spec.tensors())
        self._seed = seed

    def shape(self, role: str) -> tuple[int, ...]:
        return self._shapes[role]

    def read(self, role: str) -> np.ndarray:
        shape = self._shapes[role]
        values = np.random.default_rng([zlib.crc32(role.encode()), self._seed]).standard_normal(shape, np.float32)
        if role.endswith(".bias"):
            return values * np.float32(0.2)
        if len(shape) == 1:
            return 1 + values * np.float32(0.3)
        wide = role in ("embed_tokens.weight", "embed_positions.weight")
        return values if wide else values / np.float32(np.sqrt(shape[1]))

    def read_rows(self, role: str, start: int, stop: int) -> np.ndarray:
        return self.read(role)[start:stop]

    def quantized(self, role: str) -> None:
        return None

    def is_master(self, role: str) -> bool:
        return False


def source(spec: DecoderSpec, path: Path = Path("random"), seed: int = 0) -> SourceModel:
    return SourceModel(
        path=path,
        name="random",
        format="random weights",
        spec=spec,
        tensors=RandomDecoder(spec, seed),
        config={"model_type": spec.family},
        generation_config={},
        trained_ternary=False,
        tokenizer={},
        sha256=str,
    )


def write(
    directory: Path,
    spec: DecoderSpec,
    policy: Policy = FLOAT,
    fallback: Fallback = Fallback.EXACT,
    operators: Operators = Operators.BITNET,
) -> Path:
    """A package of the decoder without a tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    write_package(directory, source(spec), policy=policy, fallback=fallback, operators=operators)
    return directory
