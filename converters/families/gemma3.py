"""Gemma 3 with images: the language model is converted, the vision tower is left out."""

from __future__ import annotations

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import gemma3_text
from bitnet_onnx.converters.families._family import Family
from bitnet_onnx.converters.families._refused import refuse_unread
from bitnet_onnx.decoder import DecoderSpec


def spec(config: Config) -> DecoderSpec:
    """Read the part of the configuration that describes the language model."""
    text = config.child("text_config") or Config({}, "config.json: text_config")
    refuse_unread(text, gemma3_text.FAMILY)
    if "context_length" in config:
        text = text.with_values(context_length=config.integer("context_length"))
    return gemma3_text.spec(text.with_values(tie_word_embeddings=config.boolean("tie_word_embeddings", True)))


FAMILY = Family(
    "gemma3",
    spec,
    gemma3_text.FAMILY.source,
    ignored=gemma3_text.FAMILY.ignored,
    # transformers has moved the language model twice.
    aliases={"model.": ("model.language_model.", "language_model.model."), "lm_head.": ("language_model.lm_head.",)},
    left_out=(
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ),
)
