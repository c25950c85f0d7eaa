"""Measuring packages: against a forward pass that shares nothing with the emitter."""

from __future__ import annotations

from bitnet_onnx.evaluation._logits import Progress
from bitnet_onnx.evaluation._report import LayerCheck, LogitCheck, Measure, Validation, Way, WeightCheck
from bitnet_onnx.evaluation.validation import Options, validate

__all__ = ["LayerCheck", "LogitCheck", "Measure", "Options", "Progress", "Validation", "Way", "WeightCheck", "validate"]
