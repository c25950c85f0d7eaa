"""Measuring packages: against a forward pass that shares nothing with the emitter."""

from __future__ import annotations

from bitnet_onnx.evaluation._report import LayerCheck, LogitCheck, Validation, WeightCheck
from bitnet_onnx.evaluation.validation import Options, Progress, validate

__all__ = ["LayerCheck", "LogitCheck", "Options", "Progress", "Validation", "WeightCheck", "validate"]
