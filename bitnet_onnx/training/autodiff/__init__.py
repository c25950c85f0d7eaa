"""Reverse-mode differentiation of plain ONNX graphs."""

from bitnet_onnx.training.autodiff._losses import lower_losses
from bitnet_onnx.training.autodiff.differentiate import differentiate

__all__ = ["differentiate", "lower_losses"]
