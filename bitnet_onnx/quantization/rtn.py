"""Rounding to the nearest of evenly spaced values, with a search for the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantization._groups import (
    check,
    cut,
    energies,
    far_end,
    joined,
    limits,
    nearest,
    parts,
    peaks,
    relative,
    shaped,
)
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import FloatArray, Grid, QuantizedTensor

#: Floats worked on at once: what is tried again and again stays in the cache.
_PART: Final = 1 << 16
#: Where the end of the grid may lie, in units of the largest weight: clipped the further below 1.
_CLIPS: Final = (1.0, *(round(1 - 0.03 * step, 2) for step in range(1, 22)))
#: With the other sign the largest weight is on the near end, which needs a larger step.
_STRETCHES: Final = (2.0, 1.75, 1.5, 1.25, 1.125)


@dataclass(frozen=True, slots=True)
class Rtn:
    """Rounds to nearest; all grids of `integer_grid`.

    Attributes:
        search: try steps and signs in each group for the least squared error, each column weighted by the energy of its
            input; without it the largest weight sets the step, as in `integer.quantize_integer`.
    """

    search: bool = True

    def __call__(self, weight: FloatArray, grid: Grid, statistics: InputStatistics | None = None) -> QuantizedTensor:
        """Round to nearest; see `Method`."""
        check(weight, statistics)
        if grid.is_ternary:
            raise InputError("rtn makes weights of 2, 4, 6 or 8 bits: choose least_squares or gptq for ternary ones")
        rows, columns = weight.shape
        raw = np.empty((rows, columns), np.uint8)
        scale = np.empty((rows, grid.groups(columns)), np.float32)
        energy = energies(statistics, grid, columns)
        for part in parts(rows, columns, _PART):
            blocks = cut(weight[part], grid)
            step = searched(blocks, energy, grid) if self.search else peaks(blocks) / np.float32(far_end(grid))
            codes, scale[part] = nearest(blocks, step, grid)
            raw[part] = joined(codes, columns)
        return QuantizedTensor(raw, shaped(scale, grid), grid)


def searched(blocks: FloatArray, energy: FloatArray, grid: Grid) -> FloatArray:
    """The step of each group with the least error among candidates.

    The candidates of fewer bits, and all their values, are among those of more bits: more bits are never worse.

    Args:
        blocks: `[N, groups, width]`.
        energy: `[groups, width]`.
        grid: not the ternary one.

    Returns:
        float32 `[N, groups]`.
    """
    low, high = limits(grid)
    peak = peaks(blocks)
    unit = relative(blocks, peak)
    scaled, error = np.empty_like(unit), np.empty_like(unit)
    end = far_end(grid)
    factors = [end / clip for clip in _CLIPS] + [-end / clip for clip in (*_STRETCHES, *_CLIPS)]
    best = np.full(peak.shape, np.inf, np.float32)
    chosen = np.full(peak.shape, factors[0], np.float32)
    for factor in map(np.float32, factors):
        np.multiply(unit, factor, out=scaled)
        np.rint(scaled, out=error)
        np.clip(error, low, high, out=error)
        error -= scaled
        error *= error
        error *= energy
        total = error.sum(axis=2) / (factor * factor)
        better = total < best
        best[better] = total[better]
        chosen[better] = factor
    return peak / chosen
