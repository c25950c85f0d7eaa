"""The layout: panels of 32 rows, one 32-bit word of a row at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_onnx import packing
from bitnet_onnx.errors import InputError
from bitnet_onnx.packing import pack, pack_scale, packed_shape, padded_columns, padded_rows, unpack, unpack_scale
from bitnet_onnx.quantized import Grid

grids = st.sampled_from((2, 4, 6, 8)).flatmap(lambda bits: st.builds(Grid, st.just(bits), st.integers(0, 2**bits - 1)))


@given(grids, st.integers(1, 140), st.integers(1, 140), st.integers(0, 1 << 30))
def test_unpack_is_the_inverse_of_pack(grid: Grid, rows: int, columns: int, seed: int) -> None:
    raw = np.random.default_rng(seed).integers(0, grid.levels, (rows, columns), dtype=np.uint8)
    packed = pack(raw, grid)
    assert packed.shape == packed_shape(rows, columns, grid.bits)
    np.testing.assert_array_equal(unpack(packed, rows, columns, grid), raw)
    whole = unpack(packed, padded_rows(rows), padded_columns(columns), grid)
    assert (whole[rows:] == grid.zero_point).all()
    assert (whole[:, columns:] == grid.zero_point).all()


def contract_byte(unit: np.ndarray, bits: int, block: int, byte: int) -> int:
    """Byte `byte` of block `block` for a row whose 16 columns are `unit`: the table of `docs/operator.md`, by hand."""
    two = sum((int(unit[4 * byte + i]) & 3) << 2 * i for i in range(4))
    if bits == 2:
        return two
    if bits == 8:
        return int(unit[4 * byte + block])
    if block == 2:
        return sum((int(unit[4 * byte + i]) >> 4) << 2 * i for i in range(4))
    low, high = int(unit[4 * byte + 2 * block]), int(unit[4 * byte + 2 * block + 1])
    return low & 15 | (high & 15) << 4


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_every_byte_is_as_the_contract_says(bits: int) -> None:
    grid = Grid(bits, 1 << (bits - 1))
    raw = np.random.default_rng(bits).integers(0, grid.levels, (70, 100), dtype=np.uint8)
    whole = np.full((96, 128), grid.zero_point, np.uint8)
    whole[:70, :100] = raw
    packed = pack(raw, grid)
    for row in range(96):
        for unit in range(8):
            columns = whole[row, 16 * unit : 16 * unit + 16]
            for block in range(bits // 2):
                for byte in range(4):
                    stored = packed[row // 32, unit, 128 * block + 4 * (row % 32) + byte]
                    assert stored == contract_byte(columns, bits, block, byte)


@pytest.mark.parametrize(
    ("bits", "first_words"),
    [
        (2, [[0x04, 0x0C, 0x04, 0x0C]]),
        (4, [[0x10, 0x54, 0x98, 0xDC], [0x32, 0x76, 0xBA, 0xFE]]),
        (6, [[0x10, 0x54, 0x98, 0xDC], [0x32, 0x76, 0xBA, 0xFE], [0x00, 0x55, 0xAA, 0xFF]]),
        (8, [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]),
    ],
)
def test_a_unit_written_out(bits: int, first_words: list[list[int]]) -> None:
    """The first row of the first unit; every other byte of the unit is padding."""
    raw = {
        2: [0, 1, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0],
        4: range(16),
        # The upper two bits count every four columns.
        6: [column | column // 4 << 4 for column in range(16)],
        8: range(16),
    }[bits]
    packed = pack(np.array([list(raw)], np.uint8), Grid(bits, 0))
    unit = packed[0, 0].reshape(bits // 2, 32, 4)
    assert unit[:, 0].tolist() == first_words
    assert not unit[:, 1:].any()
    assert not packed[0, 1:].any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_moving_bytes_of_a_word_before_blocks_gives_rows(bits: int) -> None:
    raw = np.random.default_rng(bits).integers(0, 1 << bits, (128, 64), dtype=np.uint8)
    of_rows = pack(raw, Grid(bits, 0)).reshape(4, 4, bits // 2, 32, 4).transpose(0, 3, 1, 4, 2).reshape(128, -1)
    parts = [of_rows >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    np.testing.assert_array_equal(np.stack(parts, axis=2).reshape(128, 64), raw)


def test_shapes() -> None:
    assert packed_shape(1, 1, 2) == (1, 4, 128)
    assert packed_shape(65, 172, 6) == (3, 12, 384)


@pytest.mark.parametrize("rows", [1, 32, 70])
def test_scales_of_groups_lie_like_panels(rows: int) -> None:
    grid = Grid(4, 8, group_size=32)
    scale = np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
    packed = pack_scale(scale, grid)
    assert packed.shape == (-(-rows // 32), 3, 32)
    assert packed[(rows - 1) // 32, 2, (rows - 1) % 32] == scale[rows - 1, 2]
    np.testing.assert_array_equal(unpack_scale(packed, rows, grid), scale)


@pytest.mark.parametrize("count", [1, 5])
def test_scales_of_rows_stay(count: int) -> None:
    scale = np.arange(count, dtype=np.float32)
    assert pack_scale(scale, Grid(4, 8)) is scale
    assert unpack_scale(scale, 5, Grid(4, 8)) is scale


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (300, 100), dtype=np.uint8)
    whole = pack(raw, Grid(8, 128))
    monkeypatch.setattr(packing, "_CHUNK", 64 * 128)
    np.testing.assert_array_equal(pack(raw, Grid(8, 128)), whole)


def test_values_beyond_the_grid_are_refused() -> None:
    with pytest.raises(InputError, match=r"raw weight 4 does not fit 2 bits \(limit 3\)"):
        pack(np.full((1, 1), 4, np.uint8), Grid(2, 2))


def test_panels_of_another_shape_are_refused() -> None:
    grid = Grid(4, 8)
    packed = pack(np.zeros((64, 64), np.uint8), grid)
    for wrong in (packed[0], packed[:, :3], packed[:, :, :128], packed.astype(np.int8)):
        with pytest.raises(InputError, match=r"packed weights are .* of 4 bits is uint8\[2, 4, 256\]"):
            unpack(wrong, 64, 64, grid)
