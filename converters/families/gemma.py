"""Gemma: Llama with scaled embeddings, a gated gelu, and norms that multiply with `1 + weight`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family, Source
from bitnet_onnx.decoder import DecoderSpec

_DEFAULTS: Final = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def spec(config: Config) -> DecoderSpec:
    """Read a Gemma configuration; what is absent has the value that transformers gives it."""
    filled = config.with_defaults(**_DEFAULTS)
    if filled.string("hidden_act") == "gelu":
        # The first files named the wrong one of the two; transformers corrects it too.
        filled = filled.with_values(hidden_act="gelu_pytorch_tanh")
    found = llama.spec(filled)
    return replace(found, family="gemma", mlp_bias=False, embedding_scale=math.sqrt(found.hidden_size))


def source(_: DecoderSpec, role: str) -> Source:
    """Llama's names; one is added to the weights of norms."""
    return norm_plus_one(llama.tensor_name(role))


def norm_plus_one(name: str) -> Source:
    """A tensor; where it is a norm's weight, it is stored as what is added to one."""
    return Source(name, offset=1.0 if "norm" in name else 0.0)


FAMILY = Family("gemma", spec, source, ignored=llama.FAMILY.ignored, aliases={"model.": ("",)})
