"""Seed-OSS: Llama with heads of 128, and biases on queries, keys and values apart from that of the output."""

from __future__ import annotations

from dataclasses import replace

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family
from bitnet_onnx.decoder import DecoderSpec


def spec(config: Config) -> DecoderSpec:
    """Read a Seed-OSS configuration; what is absent has the value that transformers gives it."""
    # Null is not absent here: as many key heads as query heads, and heads that share the hidden size.
    filled = config.with_absent(num_key_value_heads=8, head_dim=128).with_defaults(
        vocab_size=155136,
        intermediate_size=27648,
        num_hidden_layers=64,
        num_attention_heads=80,
        max_position_embeddings=524288,
        attention_bias=True,
    )
    return replace(llama.spec(filled), family="seed_oss", output_bias=filled.boolean("attention_out_bias", False))


FAMILY = Family("seed_oss", spec, llama.FAMILY.source, ignored=llama.FAMILY.ignored)
