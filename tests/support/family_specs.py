"""The specification of a configuration, and what a family calls its tensors."""

from __future__ import annotations

from bitnet_onnx.converters.families import FAMILIES, Config, find
from bitnet_onnx.converters.families._family import Source
from bitnet_onnx.decoder import DecoderSpec


def spec_of(model_type: str, **fields: object) -> DecoderSpec:
    config = Config({"model_type": model_type, **fields})
    return find(config).spec(config)


def source_of(spec: DecoderSpec, role: str) -> Source:
    return FAMILIES[spec.family].source(spec, role)
