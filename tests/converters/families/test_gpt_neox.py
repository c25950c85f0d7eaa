"""GPT-NeoX: defaults of transformers 5.23, options, names, refusals."""

from __future__ import annotations

import pytest
from family_specs import source_of, spec_of

from bitnet_onnx.converters.families._family import Rows, Source
from bitnet_onnx.decoder import Attention, DecoderSpec, Norm, Residual, Rotary
from bitnet_onnx.errors import CheckpointError, UnsupportedError


def test_defaults() -> None:
    assert spec_of("gpt_neox") == DecoderSpec(
        family="gpt_neox",
        vocab_size=50432,
        hidden_size=6144,
        intermediate_size=24576,
        num_hidden_layers=44,
        num_attention_heads=64,
        num_key_value_heads=64,
        head_dim=96,
        context_length=2048,
        norm_epsilon=1e-5,
        activation="gelu",
        attention=(Attention(Rotary(10000.0, 24)),),
        norm=Norm.LAYER,
        residual=Residual.PARALLEL,
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


def test_options() -> None:
    found = spec_of(
        "gpt_neox",
        use_parallel_residual=False,
        attention_bias=False,
        hidden_act="gelu_fast",
        tie_word_embeddings=True,
        layer_norm_eps=1e-6,
    )
    assert found.residual is Residual.SEQUENTIAL
    assert (found.qkv_bias, found.output_bias, found.mlp_bias) == (False, False, True)
    assert (found.activation, found.tie_word_embeddings, found.norm_epsilon) == ("gelu_tanh", True, 1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary_pct": 0.5, "rotary_emb_base": 25000},
        {"rotary_pct": 0.5, "rotary_emb_base": 25000, "rope_theta": 1e4},
        {"rope_parameters": {"rope_theta": 25000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}},
    ],
)
def test_old_and_new_names_of_the_rotation(changes: dict[str, object]) -> None:
    assert spec_of("gpt_neox", **changes).attention == (Attention(Rotary(25000.0, 48)),)


@pytest.mark.parametrize(
    ("role", "source"),
    [
        ("embed_tokens.weight", Source("gpt_neox.embed_in.weight")),
        ("norm.weight", Source("gpt_neox.final_layer_norm.weight")),
        ("lm_head.weight", Source("embed_out.weight")),
        ("layers.0.input_norm.bias", Source("gpt_neox.layers.0.input_layernorm.bias")),
        ("layers.0.post_attention_norm.bias", Source("gpt_neox.layers.0.post_attention_layernorm.bias")),
        (
            "layers.0.attn.k_proj.bias",
            Source("gpt_neox.layers.0.attention.query_key_value.bias", Rows(96, 96, 18432, stride=288, count=64)),
        ),
        ("layers.0.attn.o_proj.weight", Source("gpt_neox.layers.0.attention.dense.weight")),
        ("layers.0.mlp.up_proj.weight", Source("gpt_neox.layers.0.mlp.dense_h_to_4h.weight")),
        ("layers.0.mlp.down_proj.bias", Source("gpt_neox.layers.0.mlp.dense_4h_to_h.bias")),
    ],
)
def test_names(role: str, source: Source) -> None:
    assert source_of(spec_of("gpt_neox"), role) == source


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rotary_pct": 2.0}, CheckpointError, "partial_rotary_factor is 2.0"),
        ({"rotary_pct": 0.01}, CheckpointError, "0 of 96 features of a head are rotated"),
        ({"hidden_act": "gelu_10"}, UnsupportedError, "'gelu_10'"),
        ({"rope_scaling": {"type": "spiral", "factor": 2}}, UnsupportedError, "'spiral'"),
        ({"num_attention_heads": 7}, CheckpointError, "7 attention heads do not divide the hidden size 6144"),
    ],
)
def test_refusals(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec_of("gpt_neox", **changes)
