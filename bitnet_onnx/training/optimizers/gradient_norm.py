"""The norm of all gradients together."""

from __future__ import annotations

import math

import numpy as np

from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.optimizers._chunks import BLOCK, Piece, Workers, pieces


class GradientNorm:
    """Computes the Euclidean norm of a flat array, in float64 and in an order that is always the same.

    Args:
        size: of the array.
        threads: None is a few; the result does not depend on it.
    """

    def __init__(self, size: int, *, threads: int | None = None) -> None:
        self._blocks = pieces(size, chunk=BLOCK)
        self._workers = Workers(threads, room=BLOCK)
        self._sums = np.zeros(len(self._blocks), np.float64)

    def __call__(self, gradients: FloatArray) -> float:
        """The norm; NaN or infinite where a gradient is."""

        def add(block: Piece) -> None:
            # Squares of float32 fit float64, whatever they are.
            wide = gradients[block.slice].astype(np.float64)
            np.multiply(wide, wide, out=wide)
            self._sums[block.start // BLOCK] = wide.sum()

        self._workers.run(add, self._blocks)
        return math.sqrt(math.fsum(self._sums.tolist()))

    def close(self) -> None:
        """End the threads."""
        self._workers.close()


def clip_scale(norm: float, limit: float) -> float:
    """The factor that brings gradients of a norm down to the limit; a limit of 0 is none."""
    return limit / norm if limit and norm > limit else 1.0
