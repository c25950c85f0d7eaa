"""GPT-2: defaults of transformers 5.23, options, names, refusals."""

from __future__ import annotations

import pytest
from family_specs import source_of, spec_of

from bitnet_onnx.converters.families._family import Rows, Source
from bitnet_onnx.decoder import Attention, DecoderSpec, LearnedPositions, Norm
from bitnet_onnx.errors import CheckpointError, UnsupportedError


def test_defaults() -> None:
    expected = DecoderSpec(
        family="gpt2",
        vocab_size=50257,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        head_dim=64,
        context_length=1024,
        norm_epsilon=1e-5,
        activation="gelu_tanh",
        attention=(Attention(),),
        norm=Norm.LAYER,
        gated=False,
        learned_positions=LearnedPositions(1024),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    )
    assert spec_of("gpt2") == expected
    assert (
        spec_of("gpt2", n_inner=None, scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=True) == expected
    )


def test_options() -> None:
    found = spec_of(
        "gpt2", n_inner=100, activation_function="gelu", scale_attn_weights=False, tie_word_embeddings=False
    )
    assert (found.intermediate_size, found.activation, found.attention_scale) == (100, "gelu", 1.0)
    assert not found.tie_word_embeddings


@pytest.mark.parametrize(
    ("role", "source"),
    [
        ("embed_tokens.weight", Source("transformer.wte.weight")),
        ("embed_positions.weight", Source("transformer.wpe.weight")),
        ("norm.bias", Source("transformer.ln_f.bias")),
        ("lm_head.weight", Source("lm_head.weight")),
        ("layers.3.input_norm.weight", Source("transformer.h.3.ln_1.weight")),
        ("layers.3.post_attention_norm.bias", Source("transformer.h.3.ln_2.bias")),
        (
            "layers.3.attn.q_proj.weight",
            Source("transformer.h.3.attn.c_attn.weight", Rows(0, 768, 2304), transposed=True),
        ),
        (
            "layers.3.attn.v_proj.bias",
            Source("transformer.h.3.attn.c_attn.bias", Rows(1536, 768, 2304), transposed=True),
        ),
        ("layers.3.attn.o_proj.weight", Source("transformer.h.3.attn.c_proj.weight", transposed=True)),
        ("layers.3.mlp.up_proj.weight", Source("transformer.h.3.mlp.c_fc.weight", transposed=True)),
        ("layers.3.mlp.down_proj.bias", Source("transformer.h.3.mlp.c_proj.bias", transposed=True)),
    ],
)
def test_names(role: str, source: Source) -> None:
    assert source_of(spec_of("gpt2"), role) == source


@pytest.mark.parametrize("name", ["scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_what_is_not_supported_is_named(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name} is True"):
        spec_of("gpt2", **{name: True})


def test_heads_that_do_not_divide_the_hidden_size() -> None:
    with pytest.raises(CheckpointError, match="7 attention heads do not divide the hidden size 768"):
        spec_of("gpt2", n_head=7)
