"""The layout: 64-row panels of 2-bit codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_onnx import packing
from bitnet_onnx.errors import InputError
from bitnet_onnx.packing import pack, packed_shape, padded, unpack
from bitnet_onnx.quantized import Grid

grids = st.integers(1, 4).flatmap(lambda planes: st.builds(Grid, st.just(planes), st.integers(0, 4**planes - 1)))


@given(grids, st.integers(1, 140), st.integers(1, 140), st.integers(0, 1 << 30))
def test_unpack_is_the_inverse_of_pack(grid: Grid, rows: int, columns: int, seed: int) -> None:
    raw = np.random.default_rng(seed).integers(0, grid.levels, (rows, columns), dtype=np.uint8)
    packed = pack(raw, grid)
    assert packed.shape == packed_shape(rows, columns, grid.planes)
    np.testing.assert_array_equal(unpack(packed, rows, columns, grid), raw)
    whole = unpack(packed, padded(rows), padded(columns), grid)
    assert (whole[rows:] == grid.zero_point).all()
    assert (whole[:, columns:] == grid.zero_point).all()


@given(grids, st.integers(0, 1 << 30))
def test_the_bytes_are_as_the_contract_says(grid: Grid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, grid.levels, (70, 130), dtype=np.uint8)
    packed = pack(raw, grid).reshape(grid.planes, 2, 48, 64)
    for row, column in zip(rng.integers(0, 70, 20), rng.integers(0, 130, 20), strict=True):
        value = 0
        for plane in range(grid.planes):
            byte = int(packed[plane, row // 64, column // 4, row % 64])
            value += 4**plane * (byte >> 2 * (column % 4) & 3)
        assert value == raw[row, column]


def test_shapes() -> None:
    assert packed_shape(1, 1, 1) == (1, 16, 64)
    assert packed_shape(65, 172, 3) == (3, 2, 48, 64)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (300, 100), dtype=np.uint8)
    whole = pack(raw, Grid(4, 128))
    monkeypatch.setattr(packing, "_CHUNK", 64 * 128)
    np.testing.assert_array_equal(pack(raw, Grid(4, 128)), whole)


def test_values_beyond_the_grid_are_refused() -> None:
    with pytest.raises(InputError, match=r"raw weight 4 does not fit 2 bits \(limit 3\)"):
        pack(np.full((1, 1), 4, np.uint8), Grid(1, 2))


def test_panels_of_another_shape_are_refused() -> None:
    grid = Grid(2, 8)
    packed = pack(np.zeros((64, 64), np.uint8), grid)
    for wrong in (packed[0], packed[:, :, :15], packed.astype(np.int8)):
        with pytest.raises(InputError, match=r"packed weights are .* in 2 planes is uint8\[2, 1, 16, 64\]"):
            unpack(wrong, 64, 64, grid)
