"""Reverse-mode differentiation of plain ONNX graphs."""

from bitnet_onnx.training.autodiff.differentiate import differentiate

__all__ = ["differentiate"]
