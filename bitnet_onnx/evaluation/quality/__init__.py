"""How good a model is: perplexity and bits per byte of texts, distance from a reference, multiple-choice questions."""

from __future__ import annotations

from bitnet_onnx.evaluation._logits import Progress
from bitnet_onnx.evaluation.quality._evaluate import QualityOptions, evaluate
from bitnet_onnx.evaluation.quality.result import Comparison, Quality, Share, Subject, TaskQuality, TextQuality
from bitnet_onnx.evaluation.quality.windows import WindowRule

__all__ = [
    "Comparison",
    "Progress",
    "Quality",
    "QualityOptions",
    "Share",
    "Subject",
    "TaskQuality",
    "TextQuality",
    "WindowRule",
    "evaluate",
]
