"""Error compensation with the second moment of the inputs, and what improves on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantization._compensation import compensated
from bitnet_onnx.quantization._descent import Descent
from bitnet_onnx.quantization._factor import Moment, Order, Wide, feedback, lone_energy, moments
from bitnet_onnx.quantization._groups import (
    check,
    cut,
    far_end,
    in_groups,
    parts,
    peaks,
    shaped,
)
from bitnet_onnx.quantization._kept import Kept
from bitnet_onnx.quantization.absmean import mean_magnitudes
from bitnet_onnx.quantization.least_squares import least
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import ByteArray, FloatArray, Grid, QuantizedTensor

#: Weights worked on at once, in five arrays of float64.
_PART: Final = 1 << 22
_ROWS: Final = 768


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of the moment with its columns in the order of rounding."""

    moment: Moment
    order: Order
    feedback: Wide


@dataclass(frozen=True, slots=True)
class Gptq:
    """GPTQ (Frantar et al., 2022) with steps chosen before, and coordinate descent on codes and steps after it.

    Matrices that read one input are best given as one: the moment is then factored once.

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
        blocks = [self._block(moment) for moment in moments(statistics.moment)]
        lone = np.concatenate([block.moment.gain * lone_energy(block.moment.matrix, self.damping) for block in blocks])
        energy = in_groups(lone, grid)
        # Parts of one size: a short last one costs as much.
        count = -(-rows // max(1, min(_ROWS, _PART // max(columns, 1))))
        for part in parts(rows, columns, -(-rows // max(count, 1)) * columns):
            raw[part], scale[part] = self._rows(weight[part], grid, energy, blocks)
        return QuantizedTensor(raw, shaped(scale, grid), grid)

    def _block(self, moment: Moment) -> _Block:
        matrix = moment.matrix
        order = np.argsort(-matrix.diagonal(), kind="stable") if self.act_order else np.arange(len(matrix))
        return _Block(moment, moment.columns.start + order, feedback(matrix[np.ix_(order, order)], self.damping))

    def _rows(
        self, weight: FloatArray, grid: Grid, energy: FloatArray, blocks: list[_Block]
    ) -> tuple[ByteArray, FloatArray]:
        all_moments = [block.moment for block in blocks]
        kept = Kept(weight, grid, all_moments)
        groups = cut(weight, grid)
        steps = plain_steps(groups, weight.shape[1], grid)
        kept.offer_nearest(groups, steps)
        if self.search:
            steps = least(groups, energy, grid)
            kept.offer_nearest(groups, steps)
        rounded = kept.rounded(steps)
        for block in blocks:
            rounded.codes[block.order] = compensated(
                rounded.weight[block.order],
                rounded.step,
                rounded.members[block.order],
                block.feedback,
                rounded.low,
                rounded.high,
            )
        if self.sweeps:
            descent = Descent(rounded, all_moments)
            for sweep in range(self.sweeps):
                # The last visit is to the codes alone: they become the best for the steps that will be stored.
                if not descent.sweep(steps=sweep < self.sweeps - 1):
                    break
        kept.offer(rounded)
        return kept.raw, kept.scale


def plain_steps(blocks: FloatArray, columns: int, grid: Grid) -> FloatArray:
    """The steps that need no search: of the largest weight, or the mean magnitude where the grid is ternary."""
    if grid.is_ternary:
        return mean_magnitudes(blocks, columns)
    return peaks(blocks) / np.float32(far_end(grid))
