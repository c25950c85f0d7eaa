"""Codes of a matrix row by row, as operators other than ours read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.packing import squeeze
from bitnet_onnx.quantized import ByteArray, FloatArray, Grid, QuantizedTensor

#: Block sizes for which ONNX Runtime has fast kernels, and that a block of any of our groups is a multiple of.
_BLOCKS: Final = (128, 64, 32)
#: Weights worked on at once.
_CHUNK: Final = 1 << 22
WIDE_BITS: Final = 4


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix, or one part of a sum of matrices, on a grid that others know.

    Attributes:
        raw: uint8 `[N, K]`.
        bits: of a code: 2, 4 or 8.
        zero_point: the code that means zero.
        factor: of the scales.
    """

    raw: ByteArray
    bits: int
    zero_point: int
    factor: float = 1.0

    @property
    def centered(self) -> bool:
        """Whether zero lies in the middle, where operators expect it."""
        return self.zero_point == 1 << (self.bits - 1)


def codes(tensor: QuantizedTensor) -> Codes:
    """The matrix in codes of 2, 4 or 8 bits: six bits become eight, moved so that zero lies in the middle."""
    grid = tensor.grid
    if grid.bits == 6:
        return Codes(tensor.raw + np.uint8(128 - grid.zero_point), 8, 128)
    return Codes(tensor.raw, grid.bits, grid.zero_point)


def four_bit_codes(tensor: QuantizedTensor) -> list[Codes]:
    """The matrix in codes of 4 bits, as one matrix or a sum of two: what float activations have a fast kernel for."""
    grid = tensor.grid
    match grid.bits:
        case 2:
            return [Codes(tensor.raw + np.uint8(8 - grid.zero_point), WIDE_BITS, 8)]
        case 4:
            return [codes(tensor)]
        case _:
            # raw - zero = 16 * (high - zero_high) + (low - zero_low)
            low = Codes(tensor.raw & np.uint8(15), WIDE_BITS, grid.zero_point & 15)
            return [low, Codes(tensor.raw >> np.uint8(4), WIDE_BITS, grid.zero_point >> 4, 16.0)]


def raw_of(parts: Sequence[ByteArray], grid: Grid, *, four_bits: bool) -> ByteArray:
    """The matrix out of `codes` or `four_bit_codes`; what is no code of the grid comes out beyond its levels.

    Args:
        parts: codes of each, uint8 `[N, K]`.
        grid: of the matrix.
        four_bits: they are `four_bit_codes`.
    """
    if len(parts) == 2:
        return parts[0] | parts[1] << np.uint8(4)
    shift = {2: 8 - grid.zero_point} if four_bits else {6: 128 - grid.zero_point}
    # Below zero it wraps around to what no grid of fewer bits holds.
    return parts[0] - np.uint8(shift.get(grid.bits, 0))


def block_size(grid: Grid, columns: int) -> int:
    """Columns of a block: as many as have a fast kernel and divide the group, or a row that has no groups."""
    whole = grid.group_size or columns
    return next((block for block in _BLOCKS if whole % block == 0), _BLOCKS[-1])


def block_scales(tensor: QuantizedTensor, block: int) -> FloatArray:
    """The scale of every block, float32 `[N, ceil(K / block)]`."""
    rows, columns = tensor.shape
    blocks = -(-columns // block)
    if tensor.grid.group_size:
        return np.repeat(tensor.scale, tensor.grid.group_size // block, axis=1)[:, :blocks]
    return np.repeat(np.broadcast_to(tensor.scale.reshape(-1, 1), (rows, 1)), blocks, axis=1)


def pack_rows(raw: ByteArray, bits: int, fill: int, multiple: int) -> ByteArray:
    """Codes of a row one after the other, lowest bits first.

    Args:
        raw: uint8 `[N, K]`.
        bits: of a code: 2, 4 or 8.
        fill: the code behind the last column.
        multiple: of columns that a row is filled up to, itself a multiple of the codes in a byte.

    Returns:
        uint8 `[N, bytes of a row]`.
    """
    rows, columns = raw.shape
    width = -(-columns // multiple) * multiple
    packed = np.empty((rows, width * bits // 8), np.uint8)
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        part = np.full((min(start + step, rows) - start, width), fill, np.uint8)
        part[:, :columns] = raw[start : start + step]
        packed[start : start + step] = squeeze(part, bits)
    return packed
