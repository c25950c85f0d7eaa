"""`DecoderSpec` refuses what no decoder can be, and lists every tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitnet_onnx.decoder import Attention, DecoderSpec, LearnedPositions, MlpActivation, Rotary
from bitnet_onnx.errors import CheckpointError, UnsupportedError

SPEC = DecoderSpec(
    family="llama",
    vocab_size=515,
    hidden_size=64,
    intermediate_size=172,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=24,
    context_length=512,
    norm_epsilon=1e-5,
    activation="silu",
    attention=(Attention(Rotary(10000.0, 24)),),
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0: it must be at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"context_length": 0}, "context_length is 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3: it must divide num_attention_heads = 4"),
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8"),
        ({"attention": (Attention(Rotary(1e4, 26)),)}, "rotary dim is 26: it must be even and at most head_dim = 24"),
        ({"attention": ()}, "0 layer types: expected one for each of 2 layers"),
        ({"attention_scale": -1.0}, "attention scale is -1.0"),
        ({"learned_positions": LearnedPositions(512, 2)}, "the table of positions has room for 510"),
        ({"norm_epsilon": 0.0}, "norm epsilon is 0.0"),
        ({"norm_epsilon": float("nan")}, "norm epsilon is nan"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        replace(SPEC, **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1e4, 23), "rotary dim is 23"),
        ((1e4, 0), "rotary dim is 0"),
        ((1e4, 24, (1.0,)), "1 rotary divisors: expected 12"),
    ],
)
def test_rotary_refusals(arguments: tuple, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Rotary(*arguments)


@pytest.mark.parametrize("activation", list(MlpActivation))
def test_known_activations(activation: str) -> None:
    assert replace(SPEC, activation=activation).activation == activation


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("relu6", r"hidden_act 'relu6' is not supported; did you mean 'relu'\? \(known: silu, relu, relu2, gelu, "),
        ("tanh", r"hidden_act 'tanh' is not supported; did you mean 'gelu_tanh'\?"),
        ("mish", r"hidden_act 'mish' is not supported \(known: silu"),
        ("x" * 100000, r"hidden_act 'x{1,60} is not supported"),
    ],
)
def test_unknown_activations_are_refused_by_name(activation: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        replace(SPEC, activation=activation)
    assert len(str(caught.value)) < 200


def test_tensors() -> None:
    names = dict(SPEC.tensors())
    assert len(names) == 1 + 2 * 9 + 2
    assert names["embed_tokens.weight"] == names["lm_head.weight"] == (515, 64)
    assert names["layers.1.attn.q_proj.weight"] == (96, 64)
    assert names["layers.1.attn.v_proj.weight"] == (48, 64)
    assert names["layers.0.attn.o_proj.weight"] == (64, 96)
    assert names["layers.0.mlp.down_proj.weight"] == (64, 172)
    assert names["norm.weight"] == (64,)


def test_sub_norms_have_the_width_of_what_they_norm() -> None:
    plain = dict(SPEC.tensors())
    assert not [name for name in plain if "sub_norm" in name]
    attention = dict(replace(SPEC, attention_sub_norm=True).tensors())
    assert attention.pop("layers.0.attn.sub_norm.weight") == (96,)
    assert attention.pop("layers.1.attn.sub_norm.weight") == (96,)
    assert attention == plain
    mlp = dict(replace(SPEC, mlp_sub_norm=True).tensors())
    assert mlp.pop("layers.0.mlp.sub_norm.weight") == (172,)
    assert len(mlp) == len(plain) + 1


def test_tensors_of_a_tied_and_biased_decoder() -> None:
    names = dict(replace(SPEC, tie_word_embeddings=True, qkv_bias=True, output_bias=True, mlp_bias=True).tensors())
    assert "lm_head.weight" not in names
    assert names["layers.0.attn.k_proj.bias"] == (48,)
    assert names["layers.0.attn.o_proj.bias"] == (64,)
    assert names["layers.0.mlp.up_proj.bias"] == (172,)
    assert sum(name.endswith(".bias") for name in names) == 14
