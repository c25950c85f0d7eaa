"""Phi-3, Phi-3.5 and Phi-4: Llama with q, k, v in one matrix and gate, up in another; LongRoPE in the long ones."""

from __future__ import annotations

from dataclasses import replace

from bitnet_onnx.converters._config import Config
from bitnet_onnx.converters.families import llama
from bitnet_onnx.converters.families._family import Family, Rows, Source
from bitnet_onnx.converters.families._rotary import parameters
from bitnet_onnx.decoder import Attention, DecoderSpec


def spec(config: Config) -> DecoderSpec:
    """Read a Phi-3 configuration; what is absent has the value that transformers gives it."""
    filled = config.with_defaults(
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    scaling = parameters(filled)
    if scaling.string("rope_type", scaling.string("type", "default")) == "yarn":
        # The first files called LongRoPE so.
        filled = filled.with_values(rope_scaling=dict(scaling.fields) | {"rope_type": "longrope"})
    base = llama.spec(filled)
    window = filled.integer("sliding_window") if "sliding_window" in filled else 0
    return replace(
        base,
        family="phi3",
        attention=(Attention(base.attention[0].rotary, window),),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
    )


def source(spec: DecoderSpec, role: str) -> Source:
    """The rows of `qkv_proj` and `gate_up_proj` that belong to a role; the other tensors are named as in Llama."""
    query, key, inner = spec.attention_size, spec.key_value_size, spec.intermediate_size
    shared = {
        "q_proj": ("qkv_proj", Rows(0, query, query + 2 * key)),
        "k_proj": ("qkv_proj", Rows(query, key, query + 2 * key)),
        "v_proj": ("qkv_proj", Rows(query + key, key, query + 2 * key)),
        "gate_proj": ("gate_up_proj", Rows(0, inner, 2 * inner)),
        "up_proj": ("gate_up_proj", Rows(inner, inner, 2 * inner)),
    }
    module = role.split(".")[-2]
    if module not in shared:
        return Source(llama.tensor_name(role))
    name, rows = shared[module]
    return Source(llama.tensor_name(role.replace(f".{module}.", f".{name}.")), rows)


FAMILY = Family("phi3", spec, source, reads=("partial_rotary_factor", "sliding_window"), ignored=llama.FAMILY.ignored)
