"""Steps of least squared error, each column weighted by the energy of its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantization._groups import (
    check,
    cut,
    energies,
    joined,
    limits,
    nearest,
    parts,
    peaks,
    relative,
    shaped,
)
from bitnet_onnx.quantization.rtn import searched
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import FloatArray, Grid, QuantizedTensor
from bitnet_onnx.ternary import quantize_absmean

_PART: Final = 1 << 16
_ROUNDS: Final = 8
#: Magnitudes of a whole matrix are told apart by the upper bits of float32, to one part in 512.
_DROPPED_BITS: Final = 14
_BINS: Final = (0x3F800000 >> _DROPPED_BITS) + 1
_SETTLED: Final = 30


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """Ternary: the best step and threshold of each group. Integers: step and codes in turn, from `Rtn`'s on.

    Attributes:
        per_tensor: one step for the whole matrix, which must not be given in parts; ternary without groups only.
    """

    per_tensor: bool = False

    def __call__(self, weight: FloatArray, grid: Grid, statistics: InputStatistics | None = None) -> QuantizedTensor:
        """Quantize with the least error; see `Method`."""
        check(weight, statistics)
        rows, columns = weight.shape
        energy = energies(statistics, grid, columns)
        if self.per_tensor:
            if not grid.is_ternary or grid.group_size:
                raise InputError("one scale for a whole matrix is for ternary weights without groups only")
            return _of_tensor(weight, grid, energy[0])
        raw = np.empty((rows, columns), np.uint8)
        scale = np.empty((rows, grid.groups(columns)), np.float32)
        for part in parts(rows, columns, _PART):
            blocks = cut(weight[part], grid)
            codes, scale[part] = nearest(blocks, least(blocks, energy, grid), grid)
            raw[part] = joined(codes, columns)
        return QuantizedTensor(raw, shaped(scale, grid), grid)


def least(blocks: FloatArray, energy: FloatArray, grid: Grid) -> FloatArray:
    """The step of each group, float32 `[N, groups]`, for `blocks` `[N, groups, width]`."""
    return _thresholded(blocks, energy) if grid.is_ternary else _alternated(blocks, energy, grid)


def _thresholded(blocks: FloatArray, energy: FloatArray) -> FloatArray:
    """The optimum: whatever the step, the weights that are not zero are the largest ones, so all cuts are tried.

    With the m largest, `a = sum h|w| / sum h` takes `(sum h|w|)^2 / sum h` off the error.
    """
    peak = np.abs(peaks(blocks))
    magnitude = relative(np.abs(blocks), peak)
    order = np.argsort(-magnitude, axis=2, kind="stable")
    magnitude = np.take_along_axis(magnitude, order, axis=2)
    weights = np.take_along_axis(np.broadcast_to(energy, blocks.shape), order, axis=2)
    sums = np.cumsum(magnitude * weights, axis=2, dtype=np.float64)
    totals = np.cumsum(weights, axis=2, dtype=np.float64)
    step = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
    best = (sums * step).argmax(axis=2, keepdims=True)
    chosen: FloatArray = (np.take_along_axis(step, best, axis=2)[:, :, 0] * peak).astype(np.float32)
    return chosen


def _alternated(blocks: FloatArray, energy: FloatArray, grid: Grid) -> FloatArray:
    low, high = limits(grid)
    peak = peaks(blocks)
    unit = relative(blocks, peak)
    start = searched(blocks, energy, grid)
    step = np.divide(start, peak, out=np.ones_like(peak), where=peak != 0)
    best, kept = np.full(peak.shape, np.inf), step
    for _ in range(_ROUNDS):
        inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
        codes = np.clip(np.rint(unit * inverse[:, :, None]), low, high)
        error = unit - codes * step[:, :, None]
        error *= error
        error *= energy
        total = error.sum(axis=2, dtype=np.float64)
        better = total < best
        if not better.any():
            break
        best, kept = np.where(better, total, best), np.where(better, step, kept)
        weighted = codes * energy
        product = (weighted * unit).sum(axis=2, dtype=np.float64)
        square = (weighted * codes).sum(axis=2, dtype=np.float64)
        step = np.divide(product, square, out=kept.astype(np.float64), where=square > 0).astype(np.float32)
    # Of the first candidates `searched` knows the steps to the last bit.
    chosen: FloatArray = np.where(kept * peak == 0, start, kept * peak).astype(np.float32)
    return chosen


def _of_tensor(weight: FloatArray, grid: Grid, energy: FloatArray) -> QuantizedTensor:
    peak = np.abs(weight).max(initial=0)
    plain = quantize_absmean(weight)
    if not peak:
        return plain
    candidates = (float(plain.scale[0]) / float(peak), _best_bin(weight, peak, energy))
    settled = [_settled(weight, peak, energy, step) for step in candidates]
    step = max(settled, key=lambda pair: pair[1])[0]
    scale = np.array([step * float(peak)], np.float32)
    raw = np.empty(weight.shape, np.uint8)
    for part in _parts(weight):
        raw[part] = nearest(weight[part][:, None], np.broadcast_to(scale, (len(weight[part]), 1)), grid)[0][:, 0]
    return QuantizedTensor(raw, scale, grid)


def _parts(weight: FloatArray) -> Iterator[slice]:
    rows, columns = weight.shape
    return parts(rows, columns, _PART)


def _best_bin(weight: FloatArray, peak: np.float32, energy: FloatArray) -> float:
    """The best step if the magnitudes may be cut between bins only."""
    sums, totals = np.zeros(_BINS), np.zeros(_BINS)
    for part in _parts(weight):
        magnitude = np.abs(weight[part]) / peak
        bins = (magnitude.view(np.uint32) >> _DROPPED_BITS).reshape(-1)
        weights = np.broadcast_to(energy, magnitude.shape)
        sums += np.bincount(bins, (magnitude * weights).reshape(-1), _BINS)
        totals += np.bincount(bins, weights.reshape(-1), _BINS)
    above, counted = sums[::-1].cumsum(), totals[::-1].cumsum()
    step = np.divide(above, counted, out=np.zeros_like(above), where=counted > 0)
    return float(step[(above * step).argmax()])


def _settled(weight: FloatArray, peak: np.float32, energy: FloatArray, step: float) -> tuple[float, float]:
    """Step and threshold in turn until neither changes: the step, and what it takes off the error."""
    for _ in range(_SETTLED):
        above, counted = _above(weight, peak, energy, step / 2)
        fitted = above / counted if counted else step
        if np.float32(fitted) == np.float32(step):
            break
        step = fitted
    above, counted = _above(weight, peak, energy, step / 2)
    return step, 2 * step * above - step * step * counted


def _above(weight: FloatArray, peak: np.float32, energy: FloatArray, threshold: float) -> tuple[float, float]:
    sums = totals = 0.0
    for part in _parts(weight):
        magnitude = np.abs(weight[part]) / peak
        chosen = np.where(magnitude > threshold, energy, np.float32(0))
        sums += float((magnitude * chosen).sum(dtype=np.float64))
        totals += float(chosen.sum(dtype=np.float64))
    return sums, totals
