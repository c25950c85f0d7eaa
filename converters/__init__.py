"""Converters: checkpoints and packages in, packages and checkpoints out."""

from __future__ import annotations

from bitnet_onnx.converters.convert import Conversion, convert
from bitnet_onnx.converters.coreml.convert import convert_coreml
from bitnet_onnx.converters.coreml.options import CoreMLOptions, DeploymentTarget, TernaryStorage
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
    "CoreMLOptions",
    "DeploymentTarget",
    "Export",
    "Fallback",
    "FloatType",
    "GgufOptions",
    "GgufTernary",
    "Layout",
    "Progress",
    "SafetensorsOptions",
    "Target",
    "TernaryStorage",
    "Written",
    "convert",
    "convert_coreml",
    "export",
]
