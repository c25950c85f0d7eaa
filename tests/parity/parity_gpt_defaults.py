"""The same as `parity_family_defaults.py` for Gemma and the families of the GPT kind."""

from __future__ import annotations

import math

import pytest
from family_specs import read
from transformers import CONFIG_MAPPING, PreTrainedConfig

from bitnet_onnx.converters.families._activation import activation
from bitnet_onnx.converters.families._family import Config
from bitnet_onnx.decoder import LearnedPositions, NormPlacement, QueryKeyNorm, Residual, Rotary


def first(config: PreTrainedConfig, *names: str) -> object:
    """The first of these fields that the configuration has and that is not null."""
    return next(value for name in names if (value := getattr(config, name, None)) is not None)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gptj", "opt", "phi"])
def test_sizes(family: str) -> None:
    found, config = read({"model_type": family}), CONFIG_MAPPING[family]()
    hidden, heads = config.hidden_size, config.num_attention_heads
    inner = 4 * hidden if family in {"gpt2", "gptj"} else first(config, "intermediate_size", "ffn_dim")
    assert getattr(config, "n_inner", None) is None
    assert (found.vocab_size, found.hidden_size, found.intermediate_size) == (config.vocab_size, hidden, inner)
    assert (found.num_hidden_layers, found.num_attention_heads) == (config.num_hidden_layers, heads)
    assert found.num_key_value_heads == (getattr(config, "num_key_value_heads", None) or heads)
    assert found.head_dim == (getattr(config, "head_dim", None) or hidden // heads)
    assert found.context_length == config.max_position_embeddings
    assert found.tie_word_embeddings == config.tie_word_embeddings
    if family != "opt":
        assert found.norm_epsilon == first(config, "rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
    name = first(config, "hidden_activation", "hidden_act", "activation_function")
    assert found.activation == activation(Config({"hidden_act": name}))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_gemma(family: str) -> None:
    found, config = read({"model_type": family}), CONFIG_MAPPING[family]()
    assert found.attention_scale == 1 / math.sqrt(config.query_pre_attn_scalar)
    assert found.attention_softcap == (config.attn_logit_softcapping or 0)
    assert found.logit_softcap == (config.final_logit_softcapping or 0)
    assert found.qkv_bias == found.output_bias == config.attention_bias
    for index, name in enumerate(config.layer_types):
        rope = config.rope_parameters.get(name, config.rope_parameters)
        assert found.layer(index).rotary == Rotary(rope["rope_theta"], config.head_dim)
        assert found.layer(index).window == (config.sliding_window if name == "sliding_attention" else 0)


@pytest.mark.parametrize("family", ["gpt_neox", "phi"])
def test_partial_rotation(family: str) -> None:
    found, config = read({"model_type": family}), CONFIG_MAPPING[family]()
    rope = config.rope_parameters
    dim = int(found.head_dim * rope["partial_rotary_factor"])
    assert found.layer(0).rotary == Rotary(rope["rope_theta"], dim)


def test_other_options() -> None:
    neox, config = read({"model_type": "gpt_neox"}), CONFIG_MAPPING["gpt_neox"]()
    assert (neox.residual is Residual.PARALLEL) == config.use_parallel_residual
    assert neox.qkv_bias == neox.output_bias == config.attention_bias

    gptj = read({"model_type": "gptj"})
    assert gptj.layer(0).rotary == Rotary(10000.0, CONFIG_MAPPING["gptj"]().rotary_dim, interleaved=True)

    phi = read({"model_type": "phi"})
    assert (phi.query_key_norm is QueryKeyNorm.HEAD) == CONFIG_MAPPING["phi"]().qk_layernorm

    opt, config = read({"model_type": "opt"}), CONFIG_MAPPING["opt"]()
    assert (opt.placement is NormPlacement.INPUT) == config.do_layer_norm_before
    assert opt.final_norm != config._remove_final_layer_norm
    assert opt.norm_affine == config.layer_norm_elementwise_affine
    assert opt.qkv_bias == opt.output_bias == opt.mlp_bias == config.enable_bias
    assert opt.embedding_width == config.word_embed_proj_dim
    assert opt.learned_positions == LearnedPositions(config.max_position_embeddings + 2, 2)

    gpt2, config = read({"model_type": "gpt2"}), CONFIG_MAPPING["gpt2"]()
    assert (gpt2.attention_scale is None) == config.scale_attn_weights
    assert not config.scale_attn_by_inverse_layer_idx
