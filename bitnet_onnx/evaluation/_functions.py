"""Norms and activations of the reference, computed in float64 and rounded once."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.decoder import MlpActivation, Norm
from bitnet_onnx.quantized import FloatArray

_ERFC: Final = np.vectorize(math.erfc, otypes=[np.float64])


def normalize(x: FloatArray, kind: Norm, weight: FloatArray, bias: FloatArray | None, epsilon: float) -> FloatArray:
    """The norm of the last axis.

    Args:
        x: float32 `[..., K]`.
        kind: which norm.
        weight: float32 `[K]`.
        bias: float32 `[K]`, with layer norms.
        epsilon: added to the mean square or the variance.
    """
    wide = x.astype(np.float64)
    if kind is Norm.LAYER:
        # Ba, Kiros and Hinton, "Layer Normalization", 2016.
        wide -= wide.mean(axis=-1, keepdims=True)
    # Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    wide /= np.sqrt(np.square(wide).mean(axis=-1, keepdims=True) + epsilon)
    wide *= weight
    if bias is not None:
        wide += bias
    return wide.astype(np.float32)


def activate(x: FloatArray, activation: MlpActivation) -> FloatArray:
    """The non-linearity of an MLP, element by element."""
    with np.errstate(over="ignore"):
        return _activated(x.astype(np.float64), activation).astype(np.float32)


def _activated(x: npt.NDArray[np.float64], activation: MlpActivation) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64]
    match activation:
        case MlpActivation.SILU:
            result = x / (1 + np.exp(-x))
        case MlpActivation.RELU:
            result = np.maximum(x, 0)
        case MlpActivation.RELU2:
            result = np.square(np.maximum(x, 0))
        case MlpActivation.GELU:
            result = x * 0.5 * _ERFC(-x / math.sqrt(2))
        case MlpActivation.GELU_TANH:
            result = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case MlpActivation.QUICK_GELU:
            result = x / (1 + np.exp(-1.702 * x))
    return result
