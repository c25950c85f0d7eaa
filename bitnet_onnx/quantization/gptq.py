"""Error compensation with the second moment of the inputs, and what improves on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantization._compensation import compensated
from bitnet_onnx.quantization._descent import Descent, Rounded
from bitnet_onnx.quantization._factor import Moment, Wide, by_energy, feedback, lone_energy, moments
from bitnet_onnx.quantization._groups import (
    check,
    cut,
    far_end,
    in_groups,
    is_ternary,
    joined,
    limits,
    nearest,
    parts,
    peaks,
    shaped,
)
from bitnet_onnx.quantization.absmean import mean_magnitudes
from bitnet_onnx.quantization.least_squares import least
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import ByteArray, FloatArray, Grid, QuantizedTensor

#: Weights worked on at once, in five arrays of float64.
_PART: Final = 1 << 22
_ROWS: Final = 768
_TINY: Final = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class Gptq:
    """GPTQ (Frantar et al., 2022) with steps chosen before, and coordinate descent on codes and steps after it.

    Attributes:
        damping: added to the diagonal of the moment, in units of its mean.
        act_order: round features of high energy first; groups stay groups of neighbours.
        search: choose the steps by least squares; otherwise they are those of plain rounding.
        sweeps: of descent over codes and steps at most; fewer where codes settle.
    """

    damping: float = 0.05
    act_order: bool = True
    search: bool = True
    sweeps: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.damping < np.inf or self.sweeps < 0:
            raise InputError(f"damping {self.damping}, sweeps {self.sweeps}: neither may be negative")

    def __call__(self, weight: FloatArray, grid: Grid, statistics: InputStatistics | None = None) -> QuantizedTensor:
        """Quantize; the weighted error of no row is above that of plain rounding. See `Method`."""
        check(weight, statistics)
        if statistics is None:
            raise InputError("gptq needs statistics of the inputs: choose rtn or least_squares, or calibrate first")
        rows, columns = weight.shape
        raw = np.empty((rows, columns), np.uint8)
        scale = np.empty((rows, grid.groups(columns)), np.float32)
        blocks = moments(statistics.moment)
        orders = [by_energy(block.matrix) if self.act_order else np.arange(len(block.matrix)) for block in blocks]
        factors = [
            feedback(block.matrix[np.ix_(order, order)], self.damping)
            for block, order in zip(blocks, orders, strict=True)
        ]
        energy = in_groups(
            np.concatenate([block.gain * lone_energy(block.matrix, self.damping) for block in blocks]), grid
        )
        # Parts of one size: a short last one costs as much.
        count = -(-rows // max(1, min(_ROWS, _PART // max(columns, 1))))
        for part in parts(rows, columns, -(-rows // max(count, 1)) * columns):
            kept = _Kept(weight[part], grid, blocks)
            groups = cut(weight[part], grid)
            plain = plain_steps(groups, columns, grid)
            kept.offer_nearest(groups, plain)
            steps = least(groups, energy, grid) if self.search else plain
            if self.search:
                kept.offer_nearest(groups, steps)
            rounded = kept.rounded(steps)
            for block, order, factor in zip(blocks, orders, factors, strict=True):
                own = np.arange(block.columns.start, block.columns.stop)[order]
                rounded.codes[own] = compensated(
                    rounded.weight[own], rounded.step, rounded.members[own], factor, rounded.low, rounded.high
                )
            if self.sweeps:
                descent = Descent(rounded, blocks)
                for sweep in range(self.sweeps):
                    # The last visit is to the codes: they are the best for the steps that are stored.
                    if not descent.sweep(steps=sweep < self.sweeps - 1):
                        break
            kept.offer(rounded)
            raw[part], scale[part] = kept.raw, kept.scale
        return QuantizedTensor(raw, shaped(scale, grid), grid)


def plain_steps(blocks: FloatArray, columns: int, grid: Grid) -> FloatArray:
    """The steps that need no search: of the largest weight, or the mean magnitude where the grid is ternary."""
    if is_ternary(grid):
        return mean_magnitudes(blocks, columns)
    return peaks(blocks) / np.float32(far_end(grid))


class _Kept:
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
        better = loss < self._loss
        self._loss[better] = loss[better]
        self.raw[better] = raw[better]
        self.scale[better] = scale[better]
