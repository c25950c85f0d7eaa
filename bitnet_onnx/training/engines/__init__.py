"""What computes gradients: ONNX Runtime as it is, or onnxruntime-training in an environment of its own."""
