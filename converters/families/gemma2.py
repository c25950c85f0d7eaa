"""Gemma 2: norms before and after attention and MLP, capped scores and logits, windows on every other layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family, Source, replaced
from bitnet_onnx.converters.families._layers import FULL, SLIDING, attention_layers, layer_types
from bitnet_onnx.converters.families.gemma import norm_plus_one
from bitnet_onnx.decoder import DecoderSpec, NormPlacement

_DEFAULTS: Final = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_NAMES: Final = {
    ".attn.output_norm.": ".post_attention_layernorm.",
    ".mlp.output_norm.": ".post_feedforward_layernorm.",
    ".post_attention_norm.": ".pre_feedforward_layernorm.",
    ".input_norm.": ".input_layernorm.",
    ".attn.query_norm.": ".self_attn.q_norm.",
    ".attn.key_norm.": ".self_attn.k_norm.",
    ".attn.": ".self_attn.",
}


def spec(config: Config) -> DecoderSpec:
    """Read a Gemma 2 configuration; what is absent has the value that transformers gives it."""
    found = shared(config.with_defaults(**_DEFAULTS))
    types = layer_types(config, found.num_hidden_layers, lambda index: FULL if index % 2 else SLIDING)
    window = config.optional_integer("sliding_window", 4096) or 0
    return replace(
        found,
        family="gemma2",
        attention=attention_layers(types, window, (found.attention[0].rotary,)),
        attention_softcap=config.optional_number("attn_logit_softcapping", 50.0) or 0.0,
        logit_softcap=config.optional_number("final_logit_softcapping", 30.0) or 0.0,
    )


def shared(filled: Config) -> DecoderSpec:
    """What Gemma 2 and 3 have in common; `filled` has the defaults."""
    found = llama.spec(filled.with_values(hidden_act=filled.string("hidden_activation", "gelu_pytorch_tanh")))
    return replace(
        found,
        mlp_bias=False,
        placement=NormPlacement.BOTH,
        attention_scale=1 / math.sqrt(filled.number("query_pre_attn_scalar", 256.0)),
        embedding_scale=math.sqrt(found.hidden_size),
    )


def source(_: DecoderSpec, role: str) -> Source:
    """`layers.0.mlp.output_norm.weight` -> `model.layers.0.post_feedforward_layernorm.weight`, one added."""
    return norm_plus_one(role if role.startswith("lm_head.") else f"model.{replaced(role, _NAMES)}")


FAMILY = Family(
    "gemma2",
    spec,
    source,
    reads=(
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "layer_types",
        "query_pre_attn_scalar",
        "sliding_window",
    ),
    ignored=llama.FAMILY.ignored,
    aliases={"model.": ("",)},
)
