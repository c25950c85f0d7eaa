"""GPT-J: defaults of transformers 5.23, options, names, refusals."""

from __future__ import annotations

import pytest
from family_specs import source_of, spec_of

from bitnet_onnx.converters.families._family import Source
from bitnet_onnx.decoder import Attention, DecoderSpec, Norm, Residual, Rotary
from bitnet_onnx.errors import CheckpointError, UnsupportedError


def test_defaults() -> None:
    assert spec_of("gptj") == DecoderSpec(
        family="gptj",
        vocab_size=50400,
        hidden_size=4096,
        intermediate_size=16384,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=256,
        context_length=2048,
        norm_epsilon=1e-5,
        activation="gelu_tanh",
        attention=(Attention(Rotary(10000.0, 64, interleaved=True)),),
        norm=Norm.LAYER,
        residual=Residual.PARALLEL_SHARED_NORM,
        gated=False,
        mlp_bias=True,
        head_bias=True,
    )


def test_options() -> None:
    found = spec_of("gptj", n_inner=96, rotary_dim=24, activation_function="gelu", layer_norm_epsilon=1e-6)
    assert (found.intermediate_size, found.activation, found.norm_epsilon) == (96, "gelu", 1e-6)
    assert found.attention == (Attention(Rotary(10000.0, 24, interleaved=True)),)


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("embed_tokens.weight", "transformer.wte.weight"),
        ("norm.weight", "transformer.ln_f.weight"),
        ("lm_head.bias", "lm_head.bias"),
        ("layers.0.input_norm.bias", "transformer.h.0.ln_1.bias"),
        ("layers.0.attn.q_proj.weight", "transformer.h.0.attn.q_proj.weight"),
        ("layers.0.attn.o_proj.weight", "transformer.h.0.attn.out_proj.weight"),
        ("layers.0.mlp.up_proj.bias", "transformer.h.0.mlp.fc_in.bias"),
        ("layers.0.mlp.down_proj.weight", "transformer.h.0.mlp.fc_out.weight"),
    ],
)
def test_names(role: str, name: str) -> None:
    assert source_of(spec_of("gptj"), role) == Source(name)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rotary_dim": None}, UnsupportedError, "rotary_dim is null"),
        ({"rotary_dim": 258}, CheckpointError, "rotary dim is 258: it must be even and at most head_dim = 256"),
        ({"rotary_dim": 3}, CheckpointError, "rotary dim is 3: it must be even"),
        ({"activation_function": "tanh"}, UnsupportedError, "'tanh'"),
        ({"n_head": 7}, CheckpointError, "7 attention heads do not divide the hidden size 4096"),
    ],
)
def test_refusals(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec_of("gptj", **changes)
