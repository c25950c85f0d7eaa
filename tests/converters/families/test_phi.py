"""Phi 1, 1.5 and 2: defaults of transformers 5.23, options, names, refusals."""

from __future__ import annotations

import pytest
from family_specs import source_of, spec_of

from bitnet_onnx.converters.families._family import Source
from bitnet_onnx.decoder import Attention, DecoderSpec, Norm, QueryKeyNorm, Residual, Rotary
from bitnet_onnx.errors import CheckpointError, UnsupportedError


def test_defaults() -> None:
    assert spec_of("phi") == DecoderSpec(
        family="phi",
        vocab_size=51200,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=64,
        context_length=2048,
        norm_epsilon=1e-5,
        activation="gelu_tanh",
        attention=(Attention(Rotary(10000.0, 32)),),
        norm=Norm.LAYER,
        residual=Residual.PARALLEL_SHARED_NORM,
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        head_bias=True,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"partial_rotary_factor": 0.4, "rope_theta": 500.0},
        {"rope_parameters": {"partial_rotary_factor": 0.4, "rope_theta": 500.0, "rope_type": "default"}},
    ],
)
def test_phi_2(changes: dict[str, object]) -> None:
    found = spec_of("phi", hidden_size=2560, num_key_value_heads=8, qk_layernorm=True, **changes)
    assert found.attention == (Attention(Rotary(500.0, 32)),)
    assert (found.head_dim, found.num_key_value_heads) == (80, 8)
    assert found.query_key_norm is QueryKeyNorm.HEAD


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("norm.bias", "model.final_layernorm.bias"),
        ("lm_head.bias", "lm_head.bias"),
        ("layers.0.input_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("layers.0.attn.q_proj.bias", "model.layers.0.self_attn.q_proj.bias"),
        ("layers.0.attn.query_norm.weight", "model.layers.0.self_attn.q_layernorm.weight"),
        ("layers.0.attn.key_norm.bias", "model.layers.0.self_attn.k_layernorm.bias"),
        ("layers.0.attn.o_proj.weight", "model.layers.0.self_attn.dense.weight"),
        ("layers.0.mlp.up_proj.weight", "model.layers.0.mlp.fc1.weight"),
        ("layers.0.mlp.down_proj.bias", "model.layers.0.mlp.fc2.bias"),
    ],
)
def test_names(role: str, name: str) -> None:
    assert source_of(spec_of("phi"), role) == Source(name)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden_act": "mish"}, UnsupportedError, "'mish'"),
        ({"num_attention_heads": 7}, CheckpointError, "7 attention heads do not divide the hidden size 2048"),
        ({"num_key_value_heads": 5}, CheckpointError, "num_key_value_heads is 5: it must divide"),
        ({"partial_rotary_factor": 0.01}, CheckpointError, "0 of 64 features of a head are rotated"),
    ],
)
def test_refusals(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec_of("phi", **changes)
