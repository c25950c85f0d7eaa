"""Gemma 1, 2 and 3: defaults of transformers 5.23, options, names, refusals."""

from __future__ import annotations

import math

import pytest
from family_specs import source_of, spec_of

from bitnet_onnx.converters.families._family import Source
from bitnet_onnx.decoder import Attention, DecoderSpec, NormPlacement, QueryKeyNorm, Rotary
from bitnet_onnx.errors import CheckpointError, UnsupportedError

ROTARY = Rotary(1e4, 256)


def test_defaults_of_gemma() -> None:
    assert spec_of("gemma") == DecoderSpec(
        family="gemma",
        vocab_size=256000,
        hidden_size=3072,
        intermediate_size=24576,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=256,
        context_length=8192,
        norm_epsilon=1e-6,
        activation="gelu_tanh",
        attention=(Attention(ROTARY),),
        tie_word_embeddings=True,
        embedding_scale=math.sqrt(3072),
    )


def test_the_first_gemma_files_name_the_wrong_gelu() -> None:
    assert spec_of("gemma", hidden_act="gelu").activation == "gelu_tanh"
    assert spec_of("gemma", hidden_act="silu").activation == "silu"


def test_defaults_of_gemma2() -> None:
    assert spec_of("gemma2") == DecoderSpec(
        family="gemma2",
        vocab_size=256000,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        context_length=8192,
        norm_epsilon=1e-6,
        activation="gelu_tanh",
        attention=(Attention(ROTARY, 4096), Attention(ROTARY)) * 13,
        placement=NormPlacement.BOTH,
        tie_word_embeddings=True,
        attention_scale=1 / 16,
        attention_softcap=50.0,
        embedding_scale=48.0,
        logit_softcap=30.0,
    )


def test_options_of_gemma2() -> None:
    found = spec_of(
        "gemma2",
        num_hidden_layers=3,
        layer_types=["full_attention", "full_attention", "sliding_attention"],
        sliding_window=128,
        query_pre_attn_scalar=144,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        hidden_activation="gelu",
        attention_bias=True,
        tie_word_embeddings=False,
    )
    assert [layer.window for layer in found.attention] == [0, 0, 128]
    assert found.attention_scale == pytest.approx(1 / 12)
    assert (found.attention_softcap, found.logit_softcap, found.activation) == (0, 0, "gelu")
    assert (found.qkv_bias, found.output_bias, found.mlp_bias, found.tie_word_embeddings) == (True, True, False, False)


def test_defaults_of_gemma3() -> None:
    local, whole = Attention(Rotary(1e4, 256), 4096), Attention(Rotary(1e6, 256))
    assert spec_of("gemma3_text") == DecoderSpec(
        family="gemma3_text",
        vocab_size=262208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        context_length=131072,
        norm_epsilon=1e-6,
        activation="gelu_tanh",
        attention=((local,) * 5 + (whole,)) * 4 + (local,) * 2,
        placement=NormPlacement.BOTH,
        query_key_norm=QueryKeyNorm.HEAD,
        tie_word_embeddings=True,
        attention_scale=1 / 16,
        embedding_scale=48.0,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e5, "rope_local_base_freq": 500.0},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
            "rope_theta": 7.0,
        },
        {
            "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}},
            "rope_theta": 1e5,
            "rope_local_base_freq": 500.0,
        },
    ],
)
def test_layers_with_a_window_rotate_in_their_own_base(changes: dict[str, object]) -> None:
    found = spec_of("gemma3_text", num_hidden_layers=2, sliding_window_pattern=2, head_dim=16, **changes)
    assert found.attention == (Attention(Rotary(500.0, 16), 4096), Attention(Rotary(1e5, 16, (8.0,) * 8)))


def test_gemma3_reads_the_language_model_out_of_a_nested_configuration() -> None:
    """config.json of google/gemma-3-4b-it has these fields, and no others that matter."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    found = spec_of("gemma3", text_config=text, vision_config={"hidden_size": 1152})
    assert found == spec_of("gemma3_text", **{key: value for key, value in text.items() if key != "model_type"})
    assert found.attention[5].rotary == Rotary(1e6, 256, (8.0,) * 128)
    assert spec_of("gemma3", text_config=text, tie_word_embeddings=False).tie_word_embeddings is False


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("layers.1.input_norm.weight", "model.layers.1.input_layernorm.weight"),
        ("layers.1.attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"),
        ("layers.1.attn.query_norm.weight", "model.layers.1.self_attn.q_norm.weight"),
        ("layers.1.attn.key_norm.weight", "model.layers.1.self_attn.k_norm.weight"),
        ("layers.1.attn.output_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
        ("layers.1.post_attention_norm.weight", "model.layers.1.pre_feedforward_layernorm.weight"),
        ("layers.1.mlp.output_norm.weight", "model.layers.1.post_feedforward_layernorm.weight"),
        ("layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.gate_proj.weight"),
    ],
)
def test_names_and_norms_that_multiply_with_one_more(role: str, name: str) -> None:
    assert source_of(spec_of("gemma3_text"), role) == Source(name, offset=1.0 if "norm" in name else 0.0)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("gemma3", {"text_config": {"attn_logit_softcapping": 50.0}}, "attn_logit_softcapping is 50.0"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 26}, "layer type 'chunked_attention'"),
        ("gemma2", {"hidden_activation": "relu6"}, "'relu6'"),
        ("gemma3_text", {"rope_scaling": {"rope_type": "spiral"}}, "rope type 'spiral'"),
    ],
)
def test_what_is_not_supported_is_named(model_type: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        spec_of(model_type, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gemma2", {"sliding_window": None}, "no sliding_window in use"),
        ("gemma3_text", {"sliding_window": None}, "no sliding_window in use"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries: expected 26"),
        ("gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1.0"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ("gemma3", {"text_config": [1]}, "text_config is"),
        ("gemma3", {"text_config": {"hidden_size": "x"}}, "config.json: text_config: hidden_size is 'x'"),
    ],
)
def test_contradictions_are_named(model_type: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        spec_of(model_type, **changes)
