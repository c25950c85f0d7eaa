"""Gemma 3: Gemma 2 with norms on queries and keys instead of caps, and another rotation in layers with a window."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import gemma2
from bitnet_onnx.converters.families._family import Family
from bitnet_onnx.converters.families._layers import FULL, SLIDING, attention_layers, layer_types
from bitnet_onnx.converters.families._rotary import context_length, rotary
from bitnet_onnx.decoder import DecoderSpec, QueryKeyNorm

_DEFAULTS: Final = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "tie_word_embeddings": True,
}


def spec(config: Config) -> DecoderSpec:
    """Read the configuration of a Gemma 3 language model; what is absent has the value that transformers gives it."""
    filled = config.with_defaults(**_DEFAULTS)
    head_dim = filled.integer("head_dim")
    # A rule for all layers, as older files have it, means those without a window.
    local = filled.with_values(rope_theta=filled.number("rope_local_base_freq"), rope_scaling=None)
    rotaries = {name: rotary(given, head_dim, layer_type=name) for name, given in ((FULL, filled), (SLIDING, local))}
    # Not out of `filled`, where null has become a default.
    window = config.optional_integer("sliding_window", 4096) or 0
    found = gemma2.shared(filled.with_values(rope_parameters=None, rope_scaling=None))
    pattern = filled.integer("sliding_window_pattern", 6)
    types = layer_types(filled, found.num_hidden_layers, lambda index: SLIDING if (index + 1) % pattern else FULL)
    return replace(
        found,
        family="gemma3_text",
        context_length=context_length(filled, 131072, FULL),
        attention=attention_layers(types, window, tuple(rotaries[name] for name in types)),
        query_key_norm=QueryKeyNorm.HEAD,
        logit_softcap=filled.optional_number("final_logit_softcapping", None) or 0.0,
    )


FAMILY = Family(
    "gemma3_text",
    spec,
    gemma2.source,
    # Not `attn_logit_softcapping`: transformers leaves scores as they are whatever it says.
    reads=(
        "final_logit_softcapping",
        "layer_types",
        "query_pre_attn_scalar",
        "sliding_window",
        "sliding_window_pattern",
    ),
    ignored=gemma2.FAMILY.ignored,
    aliases={"model.": ("",)},
)
