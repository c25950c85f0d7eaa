"""The one weight layout: panels of 32 rows, one 32-bit word of a row at a time.

Sixteen columns of a panel are a unit of `bits / 2` blocks; a block holds one word of each row, rows side by side. It is
part of the operator's contract (`docs/operator.md`): kernels read it from the mapped file as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import ByteArray, FloatArray, Grid

PANEL_ROWS: Final = 32
#: Rows are padded to whole blocks of `MatMulNBits`.
COLUMN_MULTIPLE: Final = 64
UNIT_COLUMNS: Final = 16
#: Bytes of a row in one block.
WORD: Final = 4
#: Weights worked on at once: temporaries stay small and in the cache however large the matrix is.
_CHUNK: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Field:
    """Bits of a weight that are stored together: `raw >> shift`, `width` of them, in `width / 2` blocks of a unit."""

    block: int
    shift: int
    width: int

    @property
    def blocks(self) -> slice:
        """Where the field lies in a unit."""
        return slice(self.block, self.block + self.width // 2)


#: The fields of a weight by its bits. Six do not divide a byte: four and two do.
FIELDS: Final = {
    2: (Field(0, 0, 2),),
    4: (Field(0, 0, 4),),
    6: (Field(0, 0, 4), Field(2, 4, 2)),
    8: (Field(0, 0, 8),),
}


def padded_rows(out_features: int) -> int:
    """N rounded up to whole panels."""
    return -(-out_features // PANEL_ROWS) * PANEL_ROWS


def padded_columns(in_features: int) -> int:
    """K rounded up as it is stored."""
    return -(-in_features // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def packed_shape(out_features: int, in_features: int, bits: int) -> tuple[int, int, int]:
    """Shape of the packed matrix: panels, units of a panel, bytes of a unit."""
    blocks = bits // 2
    panels, units = padded_rows(out_features) // PANEL_ROWS, padded_columns(in_features) // UNIT_COLUMNS
    return panels, units, blocks * PANEL_ROWS * WORD


def pack(raw: ByteArray, grid: Grid) -> ByteArray:
    """Pack raw integers into panels.

    Args:
        raw: uint8 `[N, K]`, values `0 .. grid.levels - 1`.
        grid: the grid of `raw`.

    Returns:
        uint8 of `packed_shape(N, K, grid.bits)`; padding is the zero point.

    Raises:
        InputError: a value is outside the grid.
    """
    rows, columns = raw.shape
    if raw.size and int(raw.max()) >= grid.levels:
        raise InputError(f"raw weight {int(raw.max())} does not fit {grid.bits} bits (limit {grid.levels - 1})")
    packed = np.empty(packed_shape(rows, columns, grid.bits), np.uint8)
    panels, units = packed.shape[:2]
    # [panel, unit, block, row]
    words = packed.view("<u4").reshape(panels, units, -1, PANEL_ROWS)
    step = max(1, _CHUNK // padded_columns(columns) // PANEL_ROWS)
    for panel in range(0, panels, step):
        part = raw[panel * PANEL_ROWS : (panel + step) * PANEL_ROWS]
        whole = np.full((padded_rows(len(part)), padded_columns(columns)), grid.zero_point, np.uint8)
        whole[: len(part), :columns] = part
        for field in FIELDS[grid.bits]:
            values = whole >> np.uint8(field.shift) & np.uint8((1 << field.width) - 1)
            of_rows = _words(squeeze(values, field.width), field).reshape(-1, PANEL_ROWS, units, field.width // 2)
            words[panel : panel + step, :, field.blocks] = of_rows.transpose(0, 2, 3, 1)
    return packed


def unpack(packed: ByteArray, out_features: int, in_features: int, grid: Grid) -> ByteArray:
    """The raw integers of packed panels, uint8 `[N, K]`: the inverse of `pack`.

    Raises:
        InputError: `packed` does not have the shape that the sizes demand.
    """
    expected = packed_shape(out_features, in_features, grid.bits)
    if packed.shape != expected or packed.dtype != np.uint8:
        raise InputError(
            f"packed weights are {packed.dtype}{list(packed.shape)}: [{out_features}, {in_features}] "
            f"of {grid.bits} bits is uint8{list(expected)}"
        )
    # [panel, unit, block, row, byte]
    units = packed.reshape(*expected[:2], -1, PANEL_ROWS, WORD)
    raw = np.zeros((padded_rows(out_features), padded_columns(in_features)), np.uint8)
    for field in FIELDS[grid.bits]:
        of_rows = units[:, :, field.blocks].transpose(0, 3, 1, 4, 2).reshape(len(raw), -1)
        raw |= spread(of_rows, field.width) << np.uint8(field.shift)
    return np.ascontiguousarray(raw[:out_features, :in_features])


def pack_scale(scale: FloatArray, grid: Grid) -> FloatArray:
    """Scales as the operator reads them: those of groups panel by panel, others as they are.

    Args:
        scale: float32 `[1]`, `[N]` or `[N, groups]`, as in `QuantizedTensor`.
        grid: tells whether there are groups.

    Returns:
        float32 `[1]`, `[N]` or `[ceil(N/32), groups, 32]`; rows beyond N are zero.
    """
    if not grid.group_size:
        return scale
    rows, groups = scale.shape
    whole = np.zeros((padded_rows(rows), groups), np.float32)
    whole[:rows] = scale
    return np.ascontiguousarray(whole.reshape(-1, PANEL_ROWS, groups).transpose(0, 2, 1))


def unpack_scale(packed: FloatArray, out_features: int, grid: Grid) -> FloatArray:
    """The inverse of `pack_scale`."""
    if not grid.group_size:
        return packed
    rows = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])
    return np.ascontiguousarray(rows[:out_features])


def squeeze(values: ByteArray, width: int) -> ByteArray:
    """Values of `width` bits `[N, K]` -> bytes of consecutive values `[N, K * width / 8]`, lowest bits first."""
    if width == 8:
        return values
    count = 8 // width
    together = values.view(f"<u{count}")
    joined = together.copy()
    for index in range(1, count):
        joined |= together >> index * (8 - width)
    return joined.astype(np.uint8)


def repeated(value: int, width: int) -> int:
    """The byte that holds nothing but one value of 2, 4 or 8 bits."""
    return value * {2: 0x55, 4: 0x11, 8: 0x01}[width]


def spread(packed: ByteArray, width: int) -> ByteArray:
    """The inverse of `squeeze`."""
    if width == 8:
        return packed
    count = 8 // width
    joined = packed.astype(f"<u{count}")
    together = joined.copy()
    for index in range(1, count):
        together |= joined << index * (8 - width)
    return together.view(np.uint8) & np.uint8((1 << width) - 1)


def _words(of_rows: ByteArray, field: Field) -> np.ndarray:
    """Bytes of rows -> the words of their blocks: byte `j` of word `b` of a unit is byte `b` of the row's four `j`."""
    blocks = field.width // 2
    if blocks == 1:
        return of_rows.view("<u4")
    source = of_rows.reshape(-1, WORD, blocks)
    words = np.empty((len(source), blocks, WORD), np.uint8)
    # One long strided copy each: numpy is slow where the innermost axis is short.
    for byte in range(WORD):
        for block in range(blocks):
            words[:, block, byte] = source[:, byte, block]
    return words.view("<u4")
