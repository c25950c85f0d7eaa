"""A matrix cut into the groups that share a scale, and what all methods need to know of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import ByteArray, FloatArray, Grid

_TINY: Final = np.finfo(np.float32).tiny
_LARGEST: Final = float(np.finfo(np.float32).max)


def limits(grid: Grid) -> tuple[int, int]:
    """The smallest and the largest code, zero being 0."""
    return (-1, 1) if grid.is_ternary else (-grid.zero_point, grid.levels - 1 - grid.zero_point)


def far_end(grid: Grid) -> int:
    """The code of largest magnitude."""
    low, high = limits(grid)
    return low if -low >= high else high


def check(weight: FloatArray, statistics: InputStatistics | None) -> None:
    """Refuse statistics of another layer.

    Raises:
        InputError: their width is not that of the matrix, or they are not finite.
    """
    if statistics is None:
        return
    columns = weight.shape[1]
    if statistics.features != columns:
        raise InputError(
            f"statistics of {statistics.features} features for a matrix of {columns} columns: "
            "they were collected on another layer or model"
        )
    # A sum is not finite where one of its terms is not, and needs no memory.
    with np.errstate(over="ignore", invalid="ignore"):
        if not all(np.isfinite(block.sum(dtype=np.float64)) for block in statistics.moment):
            raise InputError("statistics with a second moment that is not finite: collect them again")


def parts(rows: int, columns: int, floats: int) -> Iterator[slice]:
    """Slices of rows that hold about so many floats."""
    step = max(1, floats // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def cut(weight: FloatArray, grid: Grid) -> FloatArray:
    """`[N, groups, width]`; the last group is filled up with zeros."""
    rows, columns = weight.shape
    groups = grid.groups(columns)
    width = grid.group_size or columns
    if groups * width == columns:
        return weight.reshape(rows, groups, width)
    padded = np.zeros((rows, groups * width), np.float32)
    padded[:, :columns] = weight
    return padded.reshape(rows, groups, width)


def joined(blocks: ByteArray, columns: int) -> ByteArray:
    """The inverse of `cut`."""
    rows, groups, width = blocks.shape
    return blocks.reshape(rows, groups * width)[:, :columns]


def energies(statistics: InputStatistics | None, grid: Grid, columns: int) -> FloatArray:
    """What an error in each column weighs, `[groups, width]`: `E[x^2]` of the feature, or 1 without statistics."""
    if statistics is None:
        return in_groups(np.ones(columns), grid)
    return in_groups(np.concatenate([block.diagonal() for block in statistics.moment]), grid)


def in_groups(energy: npt.NDArray[np.floating[Any]], grid: Grid) -> FloatArray:
    """Energies `[K]` as `[groups, width]`, at most 1; a group that has none weighs its columns alike."""
    energy = np.maximum(energy, 0)
    shares: FloatArray = (energy / max(energy.max(initial=0), _TINY)).astype(np.float32)
    blocks: FloatArray = cut(shares[None], grid)[0].copy()
    blocks[~blocks.any(axis=1)] = 1
    return blocks


def peaks(blocks: FloatArray) -> FloatArray:
    """The weight of largest magnitude in each group, `[N, groups]`."""
    where = np.abs(blocks).argmax(axis=2, keepdims=True)
    peak: FloatArray = np.take_along_axis(blocks, where, axis=2)[:, :, 0]
    return peak


def relative(blocks: FloatArray, peak: FloatArray) -> FloatArray:
    """Each group divided by its peak: nothing over- or underflows from here on."""
    unit = np.zeros_like(blocks)
    np.divide(blocks, peak[:, :, None], out=unit, where=peak[:, :, None] != 0)
    return unit


def nearest(blocks: FloatArray, scale: FloatArray, grid: Grid) -> tuple[ByteArray, FloatArray]:
    """Round to the nearest codes.

    Args:
        blocks: `[N, groups, width]`.
        scale: float32 `[N, groups]`.
        grid: the grid.

    Returns:
        Raw codes `[N, groups, width]`, and the scales; a group whose step is no normal float has codes and step zero.
    """
    low, high = limits(grid)
    usable = np.abs(scale) >= _TINY
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=usable)
    with np.errstate(over="ignore"):
        codes = np.rint(blocks * inverse[:, :, None])
    np.clip(codes, low, high, out=codes)
    if float(np.abs(scale).max(initial=0)) * max(-low, high) > _LARGEST:
        # Rounding up must not leave the range of floats.
        bound = np.floor(_LARGEST / np.maximum(np.abs(scale), 1))[:, :, None]
        np.clip(codes, -bound, bound, out=codes)
    codes += grid.zero_point
    return codes.astype(np.uint8), np.where(usable, scale, np.float32(0))


def shaped(scale: FloatArray, grid: Grid) -> FloatArray:
    """`[N, groups]` as a quantized tensor has it."""
    return scale if grid.group_size else scale[:, 0].copy()
