"""Converters: checkpoints and packages in, ONNX packages and checkpoints out."""

from __future__ import annotations

from bitnet_onnx.converters.convert import Conversion, convert
from bitnet_onnx.converters.export import (
    Export,
    FloatType,
    GgufOptions,
    GgufTernary,
    Layout,
    SafetensorsOptions,
    Target,
    Written,
    export,
)
from bitnet_onnx.converters.onnx.bodies import Fallback
from bitnet_onnx.converters.onnx.package import Progress

__all__ = [
    "Conversion",
    "Export",
    "Fallback",
    "FloatType",
    "GgufOptions",
    "GgufTernary",
    "Layout",
    "Progress",
    "SafetensorsOptions",
    "Target",
    "Written",
    "convert",
    "export",
]
