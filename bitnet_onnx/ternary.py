"""Ternary weights: absmean quantization, and exact recognition of matrices that already are ternary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import GROUP_MULTIPLE, TERNARY, ByteArray, FloatArray, QuantizedTensor

#: Group sizes in which {-a, 0, a} is looked for, beside those of shards.
DETECTED_GROUPS: Final = (256, 128, 64, 32)
#: Shards of columns with scales of their own: models trained in parallel over that many devices have them.
DETECTED_SHARDS: Final = (2, 3, 4, 6, 8)
_FLOOR: Final = np.float32(1e-5)


def group_sizes(columns: int) -> tuple[int, ...]:
    """The group sizes in which rows of this width may turn out to be ternary, largest first."""
    shards = {columns // count for count in DETECTED_SHARDS if columns % count == 0}
    fitting = {
        size for size in {*DETECTED_GROUPS, *shards} if size and not (size % GROUP_MULTIPLE or columns % size)
    } - {columns}
    return tuple(sorted(fitting, reverse=True))


def quantize_absmean(weight: FloatArray, mean: np.float32 | None = None) -> QuantizedTensor:
    """Quantize a matrix to {-a, 0, +a} with one `a`, the mean magnitude.

    `s = 1 / max(mean|w|, 1e-5)`, `t = clamp(rint(w * s), -1, 1)`, value `t / s`; half to even. Formula: the b1.58
    quantizer (Ma et al., "The Era of 1-bit LLMs", 2024), multiplying by the reciprocal as the reference code does.

    Args:
        weight: float32 `[N, K]`, finite. All zeros are legal and give scale 1e-5.
        mean: the mean magnitude of the whole matrix, where `weight` is a part of its rows.

    Returns:
        Two bits with the scale `[1]`.
    """
    if mean is None:
        mean = mean_magnitude([row_magnitudes(weight)], weight.size)
    inverse = np.float32(1) / np.maximum(mean, _FLOOR)
    # What overflows is clamped, and so is the reciprocal of a reciprocal that has lost bits.
    with np.errstate(over="ignore"):
        raw = _codes(weight * inverse, np.float32(0.5))
        scale = np.minimum(np.float32(1) / inverse, np.finfo(np.float32).max)
    return QuantizedTensor(raw, np.array([scale], np.float32), TERNARY)


def row_magnitudes(weight: FloatArray) -> npt.NDArray[np.float64]:
    """The sum of magnitudes of every row."""
    sums: npt.NDArray[np.float64] = np.abs(weight).astype(np.float64).sum(axis=1)
    return sums


def mean_magnitude(rows: Iterable[npt.NDArray[np.float64]], size: int) -> np.float32:
    """The mean magnitude of a matrix of `size` weights out of the sums of its rows.

    The sums are added without rounding: the result does not depend on how many rows were read at a time.
    """
    return np.float32(math.fsum(value for part in rows for value in part.tolist()) / max(size, 1))


def detect(weight: FloatArray) -> QuantizedTensor | None:
    """Recognize a matrix whose values already are {-a, 0, a}, and take `a` exactly.

    One `a` for the tensor is tried first, then one a row, then one a group of columns, see `group_sizes`.
    Quantizing such a matrix again with absmean would change it: the mean magnitude of {-a, 0, a} is not `a`.

    Args:
        weight: float32 `[N, K]`, finite.

    Returns:
        The matrix without loss (but for the sign of zeros), or None where it is not ternary or all zeros.
    """
    found = TernaryRows(*weight.shape)
    # A random float matrix fails on its first rows: look at those before the whole.
    return found.tensor() if found.add(0, weight[:4]) and found.add(4, weight[4:]) else None


class TernaryRows:
    """Recognizes {-a, 0, a} in a matrix that comes a few rows at a time.

    The code of every weight is kept, and the magnitude in each of the narrowest groups; the widest groups that fit are
    put together at the end. The result does not depend on how the rows were divided.

    Args:
        rows: N.
        columns: K.
    """

    def __init__(self, rows: int, columns: int) -> None:
        sizes = group_sizes(columns)
        self._width = sizes[-1] if sizes else max(columns, 1)
        self._raw = np.empty((rows, columns), np.uint8)
        self._peak = np.empty((rows, columns // self._width), np.float32)

    def add(self, start: int, weight: FloatArray) -> bool:
        """Take the rows from `start` on, and tell whether they are ternary; calls for other rows may run beside."""
        rows = len(weight)
        grouped = np.abs(weight).reshape(rows, self._peak.shape[1], self._width)
        peak = grouped.max(axis=2, initial=0)
        # One magnitude for all is the common case, and many times faster to compare with.
        top = peak.max(initial=0)
        if not bool(np.all((grouped == 0) | (grouped == top))) and not _fits(grouped, peak[:, :, None]):
            return False
        self._peak[start : start + rows] = peak
        self._raw[start : start + rows] = _codes(weight, np.float32(0))
        return True

    def tensor(self) -> QuantizedTensor | None:
        """The matrix with as few scales as it needs, after all rows were taken; None where all are zero."""
        peak = self._peak
        top = peak.max(initial=0)
        if not top:
            return None
        if _fits(peak, top):
            return QuantizedTensor(self._raw, np.array([top], np.float32), TERNARY)
        of_rows = peak.max(axis=1, keepdims=True)
        if _fits(peak, of_rows):
            return QuantizedTensor(self._raw, of_rows[:, 0].copy(), TERNARY)
        for size in group_sizes(self._raw.shape[1]):
            grouped = peak.reshape(len(peak), -1, size // self._width)
            scale = grouped.max(axis=2)
            if _fits(grouped, scale[:, :, None]):
                return QuantizedTensor(self._raw, scale, dataclasses.replace(TERNARY, group_size=size))
        raise InputError("rows of a ternary matrix are missing")


def _fits(magnitude: FloatArray, peak: FloatArray | np.float32) -> bool:
    return bool(np.all((magnitude == 0) | (magnitude == peak)))


def _codes(weight: FloatArray, limit: np.float32) -> ByteArray:
    """The raw codes of values above `limit`, below its negative, and between."""
    raw = (weight > limit).view(np.uint8) - (weight < -limit).view(np.uint8)
    raw += np.uint8(TERNARY.zero_point)
    return raw
