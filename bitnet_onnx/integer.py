"""Integer weights of 2, 4, 6 and 8 bits by rounding to nearest, one scale a row or a group."""

from __future__ import annotations

from typing import Final

import numpy as np

from bitnet_onnx.quantized import ByteArray, FloatArray, Grid, QuantizedTensor

#: Floats worked on at once: temporaries stay small however large the matrix is.
_CHUNK: Final = 1 << 20
_FEWEST: Final = 2


def integer_grid(bits: int, group_size: int = 0) -> Grid:
    """The integers of so many bits: from `-2**(bits-1)` on, or -1, 0, 1 and 2."""
    return Grid(bits=bits, zero_point=1 if bits == _FEWEST else 1 << (bits - 1), group_size=group_size)


def quantize_integer(weight: FloatArray, bits: int, group_size: int = 0) -> QuantizedTensor:
    """Round a matrix to the nearest of `2**bits` evenly spaced values, zero among them.

    In each row or group the weight `w` of largest magnitude sets the step: `scale = w / -2**(bits-1)`, so that
    it falls on the end of the grid and the whole range is used; the scale is negative where `w` is positive.
    With 2 bits the end is 2: `scale = w / 2`.

    Args:
        weight: float32 `[N, K]`, finite.
        bits: 2, 4, 6 or 8.
        group_size: columns that share a scale, a multiple of 32; 0 for one scale a row.

    Returns:
        The matrix on `integer_grid` with scales `[N]` or `[N, ceil(K/group_size)]`.
    """
    grid = integer_grid(bits, group_size)
    rows, columns = weight.shape
    raw = np.empty((rows, columns), np.uint8)
    scale = np.empty((rows, grid.groups(columns)), np.float32)
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        raw[part], scale[part] = _round(weight[part], grid)
    return QuantizedTensor(raw, scale if group_size else scale[:, 0].copy(), grid)


def _round(weight: FloatArray, grid: Grid) -> tuple[ByteArray, FloatArray]:
    rows, columns = weight.shape
    groups = grid.groups(columns)
    width = grid.group_size or columns
    padded = np.zeros((rows, groups * width), np.float32)
    padded[:, :columns] = weight
    blocks = padded.reshape(rows, groups, width)
    where = np.abs(blocks).argmax(axis=2, keepdims=True)
    end = 2 if grid.bits == _FEWEST else -grid.zero_point
    scale = np.take_along_axis(blocks, where, axis=2) / np.float32(end)
    # A group of zeros, or one so small that its step underflows, is all zero points.
    usable = np.abs(scale) >= np.finfo(np.float32).tiny
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=usable)
    raw = np.clip(np.rint(blocks * inverse) + grid.zero_point, 0, grid.levels - 1).astype(np.uint8)
    return raw.reshape(rows, -1)[:, :columns], np.where(usable, scale, np.float32(0))[:, :, 0]
