"""The operators that a decoder is written in: ours, ONNX Runtime's own, or those of the ONNX standard alone."""
