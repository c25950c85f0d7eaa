"""What a family reads out of an empty config.json is what the configuration class of transformers has by default."""

from __future__ import annotations

import pytest
from family_specs import read
from transformers import CONFIG_MAPPING

from bitnet_onnx.decoder import Rotary


@pytest.mark.parametrize(
    "family", ["bitnet", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"]
)
def test_defaults(family: str) -> None:
    found, config = read({"model_type": family}), CONFIG_MAPPING[family]()
    assert found.vocab_size == config.vocab_size
    assert found.hidden_size == config.hidden_size
    assert found.intermediate_size == config.intermediate_size
    assert found.num_hidden_layers == config.num_hidden_layers
    assert found.num_attention_heads == config.num_attention_heads
    assert found.num_key_value_heads == config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert found.head_dim == head_dim
    assert found.context_length == config.max_position_embeddings
    assert found.norm_epsilon == config.rms_norm_eps
    assert found.activation == config.hidden_act
    assert found.tie_word_embeddings == config.tie_word_embeddings
    assert found.qkv_bias == getattr(config, "attention_bias", family == "qwen2")
    assert found.output_bias == getattr(config, "attention_bias", False)
    assert found.mlp_bias == getattr(config, "mlp_bias", False)
    assert found.embedding_scale == getattr(config, "embedding_multiplier", 1.0)
    assert found.residual_scale == getattr(config, "residual_multiplier", 1.0)
    assert found.logit_scale == 1 / getattr(config, "logits_scaling", 1.0)
    assert found.attention_scale == getattr(config, "attention_multiplier", None)

    rotary = Rotary(config.rope_parameters["rope_theta"], head_dim)
    rotated = getattr(config, "no_rope_layers", [1] * config.num_hidden_layers)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or 0
    for index in range(config.num_hidden_layers):
        assert found.layer(index).rotary == (rotary if rotated[index] else None)
        assert found.layer(index).window == (window if types[index] == "sliding_attention" else 0)
