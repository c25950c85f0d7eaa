"""Converters: checkpoints in, ONNX packages out."""

from __future__ import annotations

from bitnet_onnx.converters.convert import Conversion, convert
from bitnet_onnx.converters.onnx.bodies import Fallback
from bitnet_onnx.converters.onnx.package import Progress

__all__ = ["Conversion", "Fallback", "Progress", "convert"]
