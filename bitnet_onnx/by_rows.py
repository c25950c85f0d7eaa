"""A matrix that is quantized a few rows at a time: temporaries stay small however large it is."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

import numpy as np

from bitnet_onnx.integer import integer_grid, quantize_integer
from bitnet_onnx.metrics import Error
from bitnet_onnx.quantized import TERNARY, FloatArray, Grid, QuantizedTensor
from bitnet_onnx.ternary import TernaryRows, mean_magnitude, quantize_absmean, row_magnitudes

T = TypeVar("T")

#: Floats worked on at once.
_PART: Final = 1 << 20
_LARGE_PART: Final = 1 << 26
#: A matrix of so many floats is read once and kept; a larger one is read again where two passes are needed.
_KEPT: Final = 1 << 25
#: Rows that tell an ordinary matrix from a ternary one, before more of it is read.
_PROBE: Final = 4
#: numpy computes outside of the interpreter's lock; more threads would wait for memory.
_THREADS: Final = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class MatrixRows:
    """The rows of a matrix, as often as they are asked for.

    Args:
        shape: `(N, K)`.
        read: gives rows `start` to `stop` as finite float32; may be called by several threads at once.
        part: floats of one part; None: few.
    """

    def __init__(
        self, shape: tuple[int, int], read: Callable[[int, int], FloatArray], *, part: int | None = None
    ) -> None:
        self.shape = shape
        self._read = read
        rows, columns = shape
        self._step = max(1, (part or _PART) // max(columns, 1))
        self._kept: dict[int, FloatArray] | None = {} if rows * columns <= _KEPT else None

    def coarser(self) -> MatrixRows:
        """The same in parts of at most 64 million floats: for methods that prepare something for each call."""
        return MatrixRows(self.shape, self._read, part=_LARGE_PART)

    def head(self) -> FloatArray:
        """The first few rows."""
        return self._read(0, min(_PROBE, self.shape[0]))

    def map(self, function: Callable[[int, FloatArray], T]) -> Iterator[T]:
        """What `function` makes of each part, called with its first row and its rows, in order, by several threads."""
        rows = self.shape[0]

        def call(start: int) -> T:
            return function(start, self._part(start))

        starts = range(0, rows, self._step)
        if len(starts) == 1 or _THREADS == 1:
            yield from map(call, starts)
            return
        pending: deque[Future[T]] = deque()
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in starts:
                pending.append(pool.submit(call, start))
                if len(pending) > _THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _part(self, start: int) -> FloatArray:
        part = None if self._kept is None else self._kept.get(start)
        if part is None:
            part = self._read(start, min(start + self._step, self.shape[0]))
            if self._kept is not None:
                self._kept[start] = part
        return part


def recognize(rows: MatrixRows) -> QuantizedTensor | None:
    """The matrix without loss if it already is ternary, else None; see `ternary.detect`."""
    head = rows.head()
    if not TernaryRows(*head.shape).add(0, head):
        return None
    found = TernaryRows(*rows.shape)
    return found.tensor() if all(rows.map(found.add)) else None


def to_ternary(rows: MatrixRows) -> tuple[QuantizedTensor, float]:
    """The matrix quantized by `ternary.quantize_absmean`, and its relative error."""
    mean = mean_magnitude(rows.map(lambda _, part: row_magnitudes(part)), rows.shape[0] * rows.shape[1])
    return _quantize(rows, lambda part: quantize_absmean(part, mean), TERNARY)


def to_integer(rows: MatrixRows, bits: int, group_size: int) -> tuple[QuantizedTensor, float]:
    """The matrix quantized by `integer.quantize_integer`, and its relative error."""
    return _quantize(rows, lambda part: quantize_integer(part, bits, group_size), integer_grid(bits, group_size))


def to_grid(
    rows: MatrixRows, grid: Grid, quantize: Callable[[FloatArray], QuantizedTensor]
) -> tuple[QuantizedTensor, float]:
    """The matrix quantized by a method that is given large parts of it, one after the other; and its relative error."""
    return _quantize(rows.coarser(), quantize, grid)


def _quantize(
    rows: MatrixRows, quantize: Callable[[FloatArray], QuantizedTensor], grid: Grid
) -> tuple[QuantizedTensor, float]:
    raw = np.empty(rows.shape, np.uint8)
    scales: list[FloatArray] = []
    total = Error()

    def work(start: int, part: FloatArray) -> tuple[FloatArray, Error]:
        tensor = quantize(part)
        raw[start : start + len(part)] = tensor.raw
        return tensor.scale, Error.between(part, tensor.dequantize())

    for scale, error in rows.map(work):
        scales.append(scale)
        total.merge(error)
    # Parts of a matrix with one scale have all the same.
    per_tensor = grid == TERNARY and bool(scales) and scales[0].shape == (1,)
    whole = scales[0] if per_tensor else np.concatenate(scales) if scales else np.zeros(0, np.float32)
    return QuantizedTensor(raw, whole, grid), total.relative
