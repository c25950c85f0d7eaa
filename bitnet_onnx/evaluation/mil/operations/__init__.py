"""The operations of Core ML programs in numpy, written from their documentation, one file for each kind."""

from bitnet_onnx.evaluation.mil._call import OPERATIONS
from bitnet_onnx.evaluation.mil.operations import (
    activations,
    attention,
    constexpr,
    elementwise,
    indexing,
    linear,
    normalization,
    reductions,
    shapes,
)

__all__ = [
    "OPERATIONS",
    "activations",
    "attention",
    "constexpr",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "reductions",
    "shapes",
]
