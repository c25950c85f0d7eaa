"""How far two arrays are from each other."""

from __future__ import annotations

import math

import numpy as np

from bitnet_onnx.quantized import FloatArray


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
        # Squares of float32 values overflow from 2e19 on.
        flat = reference.astype(np.float64).ravel()
        difference = other.astype(np.float64).ravel() - flat
        self._squared_error += float(np.dot(difference, difference))
        self._squared_reference += float(np.dot(flat, flat))

    @property
    def relative(self) -> float:
        """Root of the squared error over the root of the squared reference."""
        if not self._squared_reference:
            return 0.0 if not self._squared_error else math.inf
        return math.sqrt(self._squared_error / self._squared_reference)
