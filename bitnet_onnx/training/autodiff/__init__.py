"""Reverse-mode differentiation of plain ONNX graphs."""
