"""Converters: checkpoints in, ONNX packages out."""

from __future__ import annotations

from bitnet_onnx.converters.convert import Conversion, Progress, convert
from bitnet_onnx.converters.onnx.bodies import Fallback

__all__ = ["Conversion", "Fallback", "Progress", "convert"]
