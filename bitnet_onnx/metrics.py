"""How far two arrays are from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.quantized import FloatArray

#: Numbers worked on at once: they stay in the cache.
_CHUNK: Final = 1 << 16


def relative_error(reference: FloatArray, other: FloatArray) -> float:
    """Root of the squared error over the root of the squared reference; 0 where both vanish.

    Args:
        reference: float32, any shape.
        other: float32, the same shape.
    """
    return Error.between(reference, other).relative


class Error:
    """A relative error summed up over parts, for matrices that are never whole in memory."""

    def __init__(self) -> None:
        self._squared_error = 0.0
        self._squared_reference = 0.0

    @classmethod
    def between(cls, reference: FloatArray, other: FloatArray) -> Error:
        """The error of one array."""
        error = cls()
        error.add(reference, other)
        return error

    def add(self, reference: FloatArray, other: FloatArray) -> None:
        """Take one more part into the sums."""
        flat, rounded = reference.reshape(-1), other.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            # Squares of float32 values overflow from 2e19 on.
            exact = flat[start : start + _CHUNK].astype(np.float64)
            difference = rounded[start : start + _CHUNK] - exact
            self._squared_error += _squares(difference)
            self._squared_reference += _squares(exact)

    def merge(self, other: Error) -> None:
        """Take the sums of another part."""
        self._squared_error += other._squared_error
        self._squared_reference += other._squared_reference

    @property
    def relative(self) -> float:
        """Root of the squared error over the root of the squared reference."""
        if not self._squared_reference:
            return 0.0 if not self._squared_error else math.inf
        return math.sqrt(self._squared_error / self._squared_reference)

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise in decibels, see `decibels`."""
        return decibels(self.relative)


def perplexity(loss: float) -> float:
    """`exp(loss)` of nats a token; infinite where no double holds it."""
    return math.exp(loss) if loss < 700 else math.inf


def decibels(relative: float) -> float:
    """A relative error as signal to noise: infinite where nothing was lost, minus infinite for no signal."""
    if not relative:
        return math.inf
    return -math.inf if math.isinf(relative) else -20 * math.log10(relative)


def cosine(reference: FloatArray, other: FloatArray) -> float:
    """The cosine of the angle between two arrays of one shape; 1 where both vanish, 0 where one does."""
    product = first = second = 0.0
    left, right = reference.reshape(-1), other.reshape(-1)
    for start in range(0, left.size, _CHUNK):
        one, two = (array[start : start + _CHUNK].astype(np.float64) for array in (left, right))
        product += float(np.einsum("i,i->", one, two))
        first += _squares(one)
        second += _squares(two)
    if not first or not second:
        return float(first == second)
    # Rounding must not carry it beyond what a cosine can be.
    return max(-1.0, min(1.0, product / math.sqrt(first) / math.sqrt(second)))


def max_error(reference: FloatArray, other: FloatArray) -> float:
    """The largest difference of two arrays of one shape; 0 where they are empty."""
    left, right = reference.reshape(-1), other.reshape(-1)
    return max(
        (
            float(np.abs(right[start : start + _CHUNK] - left[start : start + _CHUNK].astype(np.float64)).max())
            for start in range(0, left.size, _CHUNK)
        ),
        default=0.0,
    )


def sparsity(values: npt.NDArray[np.floating[Any] | np.integer[Any]]) -> float:
    """The share of exact zeros; 0 of nothing."""
    return 1 - np.count_nonzero(values) / values.size if values.size else 0.0


def weighted_error(error: FloatArray, moment: Sequence[FloatArray]) -> float:
    """`tr(E M E^T)`: the mean squared error of a linear layer's outputs, summed over them.

    Args:
        error: float32 `[N, K]`, of the weights.
        moment: the second moment of the inputs in blocks on its diagonal, `[b, b]` each, that cover K in order.
    """
    total = 0.0
    columns = 0
    for block in moment:
        matrix = block.astype(np.float64)
        rows = max(1, _CHUNK // max(len(block), 1))
        for start in range(0, len(error), rows):
            part = error[start : start + rows, columns : columns + len(block)].astype(np.float64)
            total += float(np.einsum("nk,nk->", part @ matrix, part))
        columns += len(block)
    return total


def _squares(values: npt.NDArray[np.float64]) -> float:
    # `dot` would start threads of its own, and its last bits depend on how many.
    return float(np.einsum("i,i->", values, values))
