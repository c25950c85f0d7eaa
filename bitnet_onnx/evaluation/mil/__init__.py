"""Core ML packages in numpy: a saved program is run, operation by operation, and measured against its source."""

from bitnet_onnx.evaluation.mil._report import LayerError, LogitError, Overflow, Trial, Verification, Way
from bitnet_onnx.evaluation.mil.verify import Options, verify

__all__ = ["LayerError", "LogitError", "Options", "Overflow", "Trial", "Verification", "Way", "verify"]
