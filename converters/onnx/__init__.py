"""The ONNX emitter: decoder graph, function bodies, package directory."""
