"""Fuzz target: what is packed is unpacked again, for every width, size and value."""

from __future__ import annotations

import numpy as np
from fuzzing import fuzz, refusal, with_edge

from bitnet_onnx.errors import InputError
from bitnet_onnx.packing import pack, pack_scale, packed_shape, unpack, unpack_scale
from bitnet_onnx.quantized import Grid

_HEAD = 6


def run(data: bytes) -> None:
    """The first bytes choose bits, zero point, sizes and groups, the others are the weights."""
    if len(data) < _HEAD:
        return
    bits = (2, 4, 6, 8)[data[0] % 4]
    rows, columns = 1 + data[2] % 130, 1 + int.from_bytes(data[3:5], "little") % 300
    grid = Grid(bits, data[1] % (1 << bits), (0, 32)[data[5] % 2])
    raw = np.resize(np.frombuffer(data[_HEAD:] or b"\0", np.uint8), (rows, columns))
    if data[5] & 2:
        raw = raw % np.uint8(grid.levels) if bits < 8 else raw
    try:
        packed = pack(raw, grid)
    except InputError as error:
        if int(raw.max()) < grid.levels:
            raise AssertionError("values within the grid were refused") from error
        refusal(error)
        return
    if packed.shape != packed_shape(rows, columns, bits):
        raise AssertionError(f"packed {packed.shape}")
    if int(raw.max()) >= grid.levels or not np.array_equal(unpack(packed, rows, columns, grid), raw):
        raise AssertionError(f"{bits} bits, {rows} x {columns}: not what was packed")
    groups = -(-columns // 32) if grid.group_size else 0
    scale = np.resize(raw.astype(np.float32), (rows, groups) if groups else (rows,))
    if not np.array_equal(unpack_scale(pack_scale(scale, grid), rows, grid), scale):
        raise AssertionError(f"scales of {rows} x {groups}: not what was packed")


def seeds() -> list[bytes]:
    """Every width with and without groups."""
    return [bytes([width, 1, rows, 40, 0, 2 | width % 2, *range(64)]) for width in range(4) for rows in (0, 31, 69)]


if __name__ == "__main__":
    fuzz(run, with_edge, seeds())
