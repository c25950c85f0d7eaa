"""What quantization cost a model, where, and what to do about it: measured, and written as one page."""

from bitnet_onnx.report.findings import Finding, Level, Verdict, findings, judge
from bitnet_onnx.report.layers import LayerQuality, Progress
from bitnet_onnx.report.measurement import Measurement, ReportOptions, measure
from bitnet_onnx.report.page import render

__all__ = [
    "Finding",
    "LayerQuality",
    "Level",
    "Measurement",
    "Progress",
    "ReportOptions",
    "Verdict",
    "findings",
    "judge",
    "measure",
    "render",
]
