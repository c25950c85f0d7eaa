"""Ternary weights: absmean quantization, and exact recognition of matrices that already are ternary."""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from bitnet_onnx.quantized import TERNARY, FloatArray, QuantizedTensor

#: Group sizes in which `detect` looks for {-a, 0, a}, largest first.
DETECTED_GROUPS: Final = (256, 128, 64, 32)
_FLOOR: Final = np.float32(1e-5)


def quantize_absmean(weight: FloatArray) -> QuantizedTensor:
    """Quantize a matrix to {-a, 0, +a} with one `a`, the mean magnitude.

    `s = 1 / max(mean|w|, 1e-5)`, `t = clamp(rint(w * s), -1, 1)`, value `t / s`; half to even. Formula: the b1.58
    quantizer (Ma et al., "The Era of 1-bit LLMs", 2024), multiplying by the reciprocal as the reference code does.

    Args:
        weight: float32 `[N, K]`, finite. All zeros are legal and give scale 1e-5.

    Returns:
        Two bits with the scale `[1]`.
    """
    mean = np.abs(weight).mean(dtype=np.float64).astype(np.float32)
    inverse = np.float32(1) / np.maximum(mean, _FLOOR)
    ternary = np.clip(np.rint(weight * inverse), -1, 1)
    raw = (ternary + np.float32(TERNARY.zero_point)).astype(np.uint8)
    return QuantizedTensor(raw, np.array([np.float32(1) / inverse], np.float32), TERNARY)


def detect(weight: FloatArray) -> QuantizedTensor | None:
    """Recognize a matrix whose values already are {-a, 0, a}, and take `a` exactly.

    One `a` for the tensor is tried first, then one a row, then one a group of `DETECTED_GROUPS` columns.
    Quantizing such a matrix again with absmean would change it: the mean magnitude of {-a, 0, a} is not `a`.

    Args:
        weight: float32 `[N, K]`, finite.

    Returns:
        The matrix without loss, or None where it is not ternary.
    """
    magnitude = np.abs(weight)
    rows, columns = weight.shape
    peak = magnitude.max(initial=0)
    if not peak or weight.size == 0:
        return None
    if _all_ternary(magnitude, np.full((rows, 1), peak, np.float32)):
        return _exact(weight, np.array([peak], np.float32), 0)
    row_peak = magnitude.max(axis=1, keepdims=True)
    if _all_ternary(magnitude, row_peak):
        return _exact(weight, row_peak[:, 0], 0)
    for size in DETECTED_GROUPS:
        if columns % size or columns <= size:
            continue
        grouped = magnitude.reshape(rows, columns // size, size)
        group_peak = grouped.max(axis=2, keepdims=True)
        if _all_ternary(grouped, group_peak):
            return _exact(weight, group_peak[:, :, 0], size)
    return None


def _all_ternary(magnitude: FloatArray, peak: FloatArray) -> bool:
    # A random float matrix fails on its first rows: look at those before the whole.
    head = slice(0, 4)
    if not bool(np.all((magnitude[head] == 0) | (magnitude[head] == peak[head]))):
        return False
    return bool(np.all((magnitude == 0) | (magnitude == peak)))


def _exact(weight: FloatArray, scale: FloatArray, group_size: int) -> QuantizedTensor:
    raw = (np.sign(weight) + np.float32(TERNARY.zero_point)).astype(np.uint8)
    return QuantizedTensor(raw, np.ascontiguousarray(scale), dataclasses.replace(TERNARY, group_size=group_size))
