"""Quantization-aware training on ONNX Runtime."""
