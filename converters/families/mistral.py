"""Mistral: Llama without biases, every layer behind a sliding window."""

from __future__ import annotations

from dataclasses import replace

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family
from bitnet_onnx.decoder import Attention, DecoderSpec


def spec(config: Config) -> DecoderSpec:
    """Read a Mistral configuration; what is absent has the value that transformers gives it."""
    filled = config.with_absent(num_key_value_heads=8, sliding_window=4096).with_defaults(
        intermediate_size=14336, max_position_embeddings=131072
    )
    base = llama.spec(filled)
    window = filled.integer("sliding_window") if "sliding_window" in filled else 0
    return replace(
        base,
        family="mistral",
        attention=(Attention(base.attention[0].rotary, window),),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
    )


FAMILY = Family("mistral", spec, llama.FAMILY.source, reads=("sliding_window",), ignored=llama.FAMILY.ignored)
