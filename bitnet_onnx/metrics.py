"""How far two arrays are from each other."""

from __future__ import annotations

import math
from typing import Final

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


def _squares(values: npt.NDArray[np.float64]) -> float:
    # `dot` would start threads of its own, and its last bits depend on how many.
    return float(np.einsum("i,i->", values, values))
