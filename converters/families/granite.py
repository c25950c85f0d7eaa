"""Granite: Llama with a factor on embeddings, scores, branches and logits."""

from __future__ import annotations

from dataclasses import replace

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family
from bitnet_onnx.decoder import DecoderSpec


def spec(config: Config) -> DecoderSpec:
    """Read a Granite configuration; what is absent has the value that transformers gives it."""
    return replace(
        llama.spec(config),
        family="granite",
        embedding_scale=config.number("embedding_multiplier", 1.0),
        # Not 1 / sqrt(head_dim) where the file names none.
        attention_scale=config.number("attention_multiplier", 1.0),
        residual_scale=config.number("residual_multiplier", 1.0),
        logit_scale=1 / config.number("logits_scaling", 1.0),
    )


FAMILY = Family(
    "granite",
    spec,
    llama.FAMILY.source,
    reads=("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"),
    ignored=llama.FAMILY.ignored,
)
