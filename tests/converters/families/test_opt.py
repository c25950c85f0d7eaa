"""OPT: defaults of transformers 5.23, options, names, refusals."""

from __future__ import annotations

import pytest
from family_specs import source_of, spec_of

from bitnet_onnx.converters.families._family import Source
from bitnet_onnx.decoder import Attention, DecoderSpec, LearnedPositions, Norm, NormPlacement
from bitnet_onnx.errors import CheckpointError, UnsupportedError


def test_defaults() -> None:
    expected = DecoderSpec(
        family="opt",
        vocab_size=50272,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        head_dim=64,
        context_length=2048,
        norm_epsilon=1e-5,
        activation="relu",
        attention=(Attention(),),
        norm=Norm.LAYER,
        gated=False,
        learned_positions=LearnedPositions(2050, 2),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    )
    assert spec_of("opt") == expected
    assert spec_of("opt", word_embed_proj_dim=768, _remove_final_layer_norm=False) == expected


def test_opt_350m() -> None:
    found = spec_of(
        "opt", do_layer_norm_before=False, word_embed_proj_dim=512, hidden_size=1024, num_attention_heads=16
    )
    assert found.placement is NormPlacement.RESIDUAL
    assert (found.embedding_size, found.hidden_size) == (512, 1024)
    tensors = dict(found.tensors())
    assert tensors["project_in.weight"] == (1024, 512)
    assert tensors["project_out.weight"] == (512, 1024)
    assert tensors["embed_tokens.weight"] == (50272, 512)
    assert "norm.weight" not in tensors
    names = [source_of(found, f"layers.0.{role}.weight").name for role in ("attn.residual_norm", "mlp.residual_norm")]
    assert names == [
        "model.decoder.layers.0.self_attn_layer_norm.weight",
        "model.decoder.layers.0.final_layer_norm.weight",
    ]


def test_options() -> None:
    found = spec_of("opt", enable_bias=False, activation_function="gelu", tie_word_embeddings=False)
    assert (found.qkv_bias, found.output_bias, found.mlp_bias) == (False, False, False)
    assert (found.activation, found.tie_word_embeddings) == ("gelu", False)
    assert "norm.weight" not in dict(spec_of("opt", _remove_final_layer_norm=True).tensors())


def test_norms_without_weights_are_ones_and_zeros() -> None:
    found = spec_of("opt", layer_norm_elementwise_affine=False)
    for role in ("norm", "layers.0.input_norm", "layers.0.post_attention_norm"):
        assert source_of(found, f"{role}.weight").constant == 1
        assert source_of(found, f"{role}.bias").constant == 0
    assert source_of(found, "layers.0.attn.q_proj.bias").constant is None


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("embed_tokens.weight", "model.decoder.embed_tokens.weight"),
        ("embed_positions.weight", "model.decoder.embed_positions.weight"),
        ("project_in.weight", "model.decoder.project_in.weight"),
        ("norm.bias", "model.decoder.final_layer_norm.bias"),
        ("lm_head.weight", "lm_head.weight"),
        ("layers.0.input_norm.weight", "model.decoder.layers.0.self_attn_layer_norm.weight"),
        ("layers.0.post_attention_norm.bias", "model.decoder.layers.0.final_layer_norm.bias"),
        ("layers.0.attn.q_proj.bias", "model.decoder.layers.0.self_attn.q_proj.bias"),
        ("layers.0.attn.o_proj.weight", "model.decoder.layers.0.self_attn.out_proj.weight"),
        ("layers.0.mlp.up_proj.weight", "model.decoder.layers.0.fc1.weight"),
        ("layers.0.mlp.down_proj.bias", "model.decoder.layers.0.fc2.bias"),
    ],
)
def test_names(role: str, name: str) -> None:
    assert source_of(spec_of("opt"), role) == Source(name)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"activation_function": "softplus"}, UnsupportedError, "'softplus'"),
        ({"num_attention_heads": 7}, CheckpointError, "7 attention heads do not divide the hidden size 768"),
        ({"enable_bias": 1}, CheckpointError, "enable_bias is 1"),
        ({"word_embed_proj_dim": 0}, CheckpointError, "word_embed_proj_dim is 0"),
    ],
)
def test_refusals(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec_of("opt", **changes)
