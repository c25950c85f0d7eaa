"""Ternary weights by the mean magnitude."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantization._groups import check, cut, joined, nearest
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import FloatArray, Grid, QuantizedTensor
from bitnet_onnx.ternary import quantize_absmean


@dataclass(frozen=True, slots=True)
class Absmean:
    """`ternary.quantize_absmean` of the whole matrix, or the same in each group; statistics change nothing."""

    def __call__(self, weight: FloatArray, grid: Grid, statistics: InputStatistics | None = None) -> QuantizedTensor:
        """Quantize to {-1, 0, 1}; see `Method`."""
        check(weight, statistics)
        if not grid.is_ternary:
            raise InputError(f"absmean makes ternary weights, not {grid.bits} bits: choose rtn, gptq or least_squares")
        if not grid.group_size:
            return quantize_absmean(weight)
        blocks = cut(weight, grid)
        raw, scale = nearest(blocks, mean_magnitudes(blocks, weight.shape[1]), grid)
        return QuantizedTensor(joined(raw, weight.shape[1]), scale, grid)


def mean_magnitudes(blocks: FloatArray, columns: int) -> FloatArray:
    """The mean magnitude of each group `[N, groups]` of a matrix that was `columns` wide."""
    width = blocks.shape[2]
    # What fills the last group up is no weight.
    members = np.minimum(columns - np.arange(blocks.shape[1]) * width, width)
    mean: FloatArray = (np.abs(blocks).sum(axis=2, dtype=np.float64) / members).astype(np.float32)
    return mean
