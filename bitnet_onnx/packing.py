"""The one weight layout: 64-row panels of 2-bit codes, one panel set for each plane.

Byte `[r, j, c]` of a plane holds row `64 r + c`, columns `4 j .. 4 j + 3`, lowest bits first. The layout is part of the
operator's contract (`docs/operator.md`): kernels read it from the mapped file as it is.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import ByteArray, Grid

PANEL_ROWS: Final = 64
_CODES_PER_BYTE: Final = 4
#: Weights worked on at once: temporaries stay small however large the matrix is.
_CHUNK: Final = 1 << 20


def padded(size: int) -> int:
    """`size` rounded up to a whole number of panels."""
    return -(-size // PANEL_ROWS) * PANEL_ROWS


def packed_shape(out_features: int, in_features: int, planes: int) -> tuple[int, ...]:
    """Shape of the packed matrix: `[N/64, K/4, 64]` after padding, with a leading plane axis if there are several."""
    panel = (padded(out_features) // PANEL_ROWS, padded(in_features) // _CODES_PER_BYTE, PANEL_ROWS)
    return panel if planes == 1 else (planes, *panel)


def pack(raw: ByteArray, grid: Grid) -> ByteArray:
    """Pack raw integers into panels.

    Args:
        raw: uint8 `[N, K]`, values `0 .. grid.levels - 1`.
        grid: the grid of `raw`.

    Returns:
        uint8 of `packed_shape(N, K, grid.planes)`; padding is the zero point.

    Raises:
        InputError: a value is outside the grid.
    """
    rows, columns = raw.shape
    if raw.size and int(raw.max()) >= grid.levels:
        raise InputError(f"raw weight {int(raw.max())} does not fit {grid.bits} bits (limit {grid.levels - 1})")
    packed = np.empty((grid.planes, *packed_shape(rows, columns, 1)), np.uint8)
    step = max(1, _CHUNK // padded(columns) // PANEL_ROWS)
    for panel in range(0, packed.shape[1], step):
        part = raw[panel * PANEL_ROWS : (panel + step) * PANEL_ROWS]
        whole = np.full((padded(len(part)), padded(columns)), grid.zero_point, np.uint8)
        whole[: len(part), :columns] = part
        # [panel, row in panel, byte, code in byte]
        codes = whole.reshape(-1, PANEL_ROWS, whole.shape[1] // _CODES_PER_BYTE, _CODES_PER_BYTE)
        for plane in range(grid.planes):
            code = (codes >> np.uint8(2 * plane)) & np.uint8(3)
            byte = code[..., 0] | code[..., 1] << 2 | code[..., 2] << 4 | code[..., 3] << 6
            packed[plane, panel : panel + step] = byte.transpose(0, 2, 1)
    return packed if grid.planes > 1 else packed[0]


def unpack(packed: ByteArray, out_features: int, in_features: int, grid: Grid) -> ByteArray:
    """The raw integers of packed panels, uint8 `[N, K]`: the inverse of `pack`.

    Raises:
        InputError: `packed` does not have the shape that the sizes demand.
    """
    expected = packed_shape(out_features, in_features, grid.planes)
    if packed.shape != expected or packed.dtype != np.uint8:
        raise InputError(
            f"packed weights are {packed.dtype}{list(packed.shape)}: [{out_features}, {in_features}] "
            f"in {grid.planes} planes is uint8{list(expected)}"
        )
    planes = packed.reshape(grid.planes, *expected[-3:])
    raw = np.zeros((padded(out_features), padded(in_features)), np.uint8)
    view = raw.reshape(expected[-3], PANEL_ROWS, expected[-2], _CODES_PER_BYTE)
    for plane in range(grid.planes):
        rows = planes[plane].transpose(0, 2, 1)
        for code in range(_CODES_PER_BYTE):
            view[..., code] |= ((rows >> np.uint8(2 * code)) & np.uint8(3)) << np.uint8(2 * plane)
    return np.ascontiguousarray(raw[:out_features, :in_features])
