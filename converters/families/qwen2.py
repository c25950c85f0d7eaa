"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values; the upper layers may have a sliding window."""

from __future__ import annotations

from dataclasses import replace

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family
from bitnet_onnx.converters.families._layers import FULL, SLIDING, attention_layers, layer_types
from bitnet_onnx.decoder import DecoderSpec


def spec(config: Config) -> DecoderSpec:
    """Read a Qwen2 configuration; what is absent has the value that transformers gives it."""
    return replace(base(config), family="qwen2", qkv_bias=True, output_bias=False)


def base(config: Config) -> DecoderSpec:
    """What Qwen2 and Qwen3 have in common."""
    filled = config.with_absent(num_key_value_heads=32, sliding_window=4096).with_defaults(
        vocab_size=151936, intermediate_size=22016, max_position_embeddings=32768
    )
    found = llama.spec(filled)
    used = filled.boolean("use_sliding_window", False) and "sliding_window" in filled
    window = filled.integer("sliding_window") if used else 0
    first = filled.count("max_window_layers", 28)
    types = layer_types(filled, found.num_hidden_layers, lambda index: SLIDING if window and index >= first else FULL)
    return replace(
        found,
        attention=attention_layers(types, window, (found.attention[0].rotary,)),
        mlp_bias=False,
    )


FAMILY = Family(
    "qwen2", spec, llama.FAMILY.source, reads=("layer_types", "sliding_window"), ignored=llama.FAMILY.ignored
)
