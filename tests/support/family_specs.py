"""Specifications of small configurations, and what a family calls its tensors."""

from __future__ import annotations

from bitnet_onnx.converters.families import FAMILIES, Config, find
from bitnet_onnx.converters.families._family import Source
from bitnet_onnx.decoder import DecoderSpec, Rotary

BASE: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 515,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def spec_of(model_type: str, **fields: object) -> DecoderSpec:
    return read({"model_type": model_type, **fields})


def source_of(spec: DecoderSpec, role: str) -> Source:
    return FAMILIES[spec.family].source(spec, role)


def read(fields: dict[str, object]) -> DecoderSpec:
    config = Config(fields)
    return find(config).spec(config)


def spec(**changes: object) -> DecoderSpec:
    """`BASE` with changes; `absent` takes a field away."""
    return read({key: value for key, value in (BASE | changes).items() if value != "absent"})


def rotary(**changes: object) -> Rotary:
    """How layer 0 rotates."""
    found = spec(**changes).attention[0].rotary
    assert found is not None
    return found
