"""The best codes and steps found so far for each row."""

from __future__ import annotations

from typing import Final

import numpy as np

from bitnet_onnx.quantization._descent import Rounded
from bitnet_onnx.quantization._factor import Moment, Wide
from bitnet_onnx.quantization._groups import joined, limits, nearest
from bitnet_onnx.quantized import ByteArray, FloatArray, Grid

_TINY: Final = np.finfo(np.float32).tiny
_LARGEST: Final = float(np.finfo(np.float32).max)


class Kept:
    """The best that was found for each row, as it will be stored.

    Args:
        weight: `[n, K]`.
        grid: the grid.
        blocks: the moment.
    """

    def __init__(self, weight: FloatArray, grid: Grid, blocks: list[Moment]) -> None:
        rows, columns = weight.shape
        self._grid = grid
        self._blocks = blocks
        self._members = np.arange(columns) // (grid.group_size or max(columns, 1))
        # The largest weight of a row becomes 0.5 to 1: squares neither over- nor underflow.
        self._exponent = np.frexp(np.abs(weight).max(axis=1, initial=0))[1]
        self._weight: Wide = np.ldexp(weight.T.astype(np.float64), -self._exponent)
        self._loss = np.full(rows, np.inf)
        self.raw = np.full((rows, columns), grid.zero_point, np.uint8)
        self.scale = np.zeros((rows, grid.groups(columns)), np.float32)

    def rounded(self, scale: FloatArray) -> Rounded:
        """These rows with steps and without codes yet; a group of zeros gets a step that it will not use."""
        step: Wide = np.ldexp(scale.T.astype(np.float64), -self._exponent)
        step[step == 0] = 1
        low, high = limits(self._grid)
        return Rounded(self._weight, np.zeros_like(self._weight), step, self._members, low, high)

    def offer_nearest(self, blocks: FloatArray, scale: FloatArray) -> None:
        """Plain rounding to steps `[n, groups]`."""
        raw, scale = nearest(blocks, scale, self._grid)
        self._take(joined(raw, self._weight.shape[0]), scale)

    def offer(self, rounded: Rounded) -> None:
        """Codes and steps."""
        with np.errstate(over="ignore", under="ignore"):
            scale = np.ldexp(rounded.step, self._exponent).astype(np.float32).T
        used = np.zeros(scale.shape, bool)
        starts = np.flatnonzero(np.diff(self._members, prepend=-1))
        np.logical_or.reduceat(rounded.codes.T != 0, starts, axis=1, out=used)
        usable = used & (np.abs(scale) >= _TINY) & np.isfinite(scale)
        scale = np.where(usable, scale, np.float32(0))
        raw = np.where(usable[:, self._members], rounded.codes.T, 0) + self._grid.zero_point
        self._take(raw.astype(np.uint8), scale)

    def _take(self, raw: ByteArray, scale: FloatArray) -> None:
        rounded = self.rounded(scale)
        np.subtract(raw.T, np.float64(self._grid.zero_point), out=rounded.codes)
        loss = rounded.loss(self._blocks)
        # Codes that make up for errors may leave the range of floats where weights come close to its end.
        largest = np.abs(rounded.codes).max(axis=0, initial=0) * np.abs(scale.astype(np.float64)).max(axis=1, initial=0)
        loss[largest > _LARGEST] = np.inf
        better = loss < self._loss
        self._loss[better] = loss[better]
        self.raw[better] = raw[better]
        self.scale[better] = scale[better]
