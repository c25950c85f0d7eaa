"""Per-token int8 activations and the sums whose order is part of the operator's contract."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.quantized import FloatArray

LANES: Final = 16
_FLOOR: Final = np.float32(1e-5)


def lanes16(values: FloatArray) -> FloatArray:
    """Sum the last axis in the fixed order of the contract: 16 interleaved lanes, then halves.

    Args:
        values: float32 `[..., K]`.

    Returns:
        float32 `[...]`; the same bits as every kernel's sum.
    """
    *lead, columns = values.shape
    steps = -(-columns // LANES)
    whole = np.zeros((*lead, steps * LANES), np.float32)
    whole[..., :columns] = values
    whole = whole.reshape(*lead, steps, LANES)
    lanes = whole[..., 0, :].copy()
    for step in range(1, steps):
        lanes += whole[..., step, :]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


def rms_norm(x: FloatArray, weight: FloatArray, epsilon: float) -> FloatArray:
    """Root-mean-square normalization, `x / sqrt(mean(x^2) + epsilon) * weight`, in the contract's order.

    Formula: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

    Args:
        x: float32 `[..., K]`.
        weight: float32 `[K]`.
        epsilon: added to the mean square.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean = lanes16(x * x) / np.float32(x.shape[-1])
        inverse = np.float32(1) / np.sqrt(mean + np.float32(epsilon))
        normalized: FloatArray = (x * inverse[..., None]) * weight
    return normalized


def quantize_activations(x: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Quantize every token (last axis) to int8 with its own scale.

    `s = 127 / max(max|x|, 1e-5)`, `q = clamp(rint(x * s), -128, 127)`, half to even.

    Args:
        x: float32 `[..., K]`.

    Returns:
        `q`, int8 `[..., K]`, and `s`, float32 `[...]`. A token with a non-finite value has `s = NaN` and `q = 0`.
    """
    finite = np.asarray(np.isfinite(x).all(axis=-1))
    clean = np.where(finite[..., None], x, np.float32(0))
    peak = np.maximum(np.abs(clean).max(axis=-1, initial=0), _FLOOR)
    scale = np.float32(127) / peak
    quantized = np.clip(np.rint(clean * scale[..., None]), -128, 127).astype(np.int8)
    return quantized, np.where(finite, scale, np.float32(np.nan))
