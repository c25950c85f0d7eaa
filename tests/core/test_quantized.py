"""Grids and quantized matrices."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import TERNARY, Grid, QuantizedTensor, concatenate


def tensor(rows: int, columns: int, scale: np.ndarray, grid: Grid = TERNARY, seed: int = 0) -> QuantizedTensor:
    raw = np.random.default_rng(seed).integers(0, grid.levels, (rows, columns), dtype=np.uint8)
    return QuantizedTensor(raw, scale.astype(np.float32), grid)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((0, 0), "bits is 0: it must be 2, 4, 6 or 8"),
        ((5, 0), "bits is 5"),
        ((10, 0), "bits is 10"),
        ((2, 4), "zero_point is 4: it must be 0 to 3"),
        ((4, -1), "zero_point is -1"),
        ((4, 8, 31), "group size is 31"),
        ((4, 8, -32), "group size is -32"),
    ],
)
def test_a_grid_checks_itself(fields: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grid(*fields)


def test_a_grid_counts() -> None:
    grid = Grid(6, 32, 64)
    assert grid.levels == 64
    assert [grid.groups(columns) for columns in (1, 64, 65, 128)] == [1, 1, 2, 2]
    assert TERNARY.groups(1000) == 1


@pytest.mark.parametrize(
    ("raw", "scale", "grid", "message"),
    [
        (np.zeros((2, 2), np.int8), np.ones(1, np.float32), TERNARY, "raw weights are int8"),
        (np.zeros(2, np.uint8), np.ones(1, np.float32), TERNARY, r"expected uint8 \[N, K\]"),
        (np.zeros((2, 2), np.uint8), np.ones(3, np.float32), TERNARY, r"expected float32 \[1\] or \[2\]"),
        (np.zeros((2, 2), np.uint8), np.ones(2, np.float64), TERNARY, "scale is float64"),
        (np.zeros((2, 64), np.uint8), np.ones(2, np.float32), Grid(2, 2, 32), r"expected float32 \[2, 2\]"),
    ],
)
def test_a_matrix_checks_itself(raw: np.ndarray, scale: np.ndarray, grid: Grid, message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantizedTensor(raw, scale, grid)


@pytest.mark.parametrize(
    ("scale", "grid"),
    [
        (np.array([0.5]), Grid(4, 8)),
        (np.arange(1, 6), Grid(4, 8)),
        (np.arange(1, 16).reshape(5, 3), Grid(4, 8, 32)),
    ],
)
def test_a_weight_is_its_step_times_its_distance_from_zero(scale: np.ndarray, grid: Grid) -> None:
    matrix = tensor(5, 70, scale, grid)
    values = matrix.dequantize()
    for row, column in ((0, 0), (4, 69), (2, 33)):
        step = scale[row, column // 32] if grid.group_size else scale[row] if scale.size > 1 else scale[0]
        assert values[row, column] == step * (int(matrix.raw[row, column]) - 8)
    part = matrix.rows(1, 3)
    np.testing.assert_array_equal(part.dequantize(), values[1:3])
    np.testing.assert_array_equal(matrix.with_row_scales().dequantize(), values)


def test_bits_of_a_weight_count_scales() -> None:
    assert tensor(4, 64, np.ones((4, 2)), Grid(4, 8, 32)).bits_per_weight() == 5
    assert tensor(1, 320, np.ones(1)).bits_per_weight() == 2.1


def test_matrices_on_one_grid_are_stacked() -> None:
    parts = [tensor(3, 8, np.array([2.0])), tensor(1, 8, np.array([3.0])), tensor(2, 8, np.array([4.0, 5.0]))]
    joint = concatenate(parts)
    assert joint.scale.tolist() == [2, 2, 2, 3, 4, 5]
    np.testing.assert_array_equal(joint.dequantize(), np.concatenate([part.dequantize() for part in parts]))


def test_matrices_of_different_grids_or_widths_are_not() -> None:
    one = tensor(3, 8, np.ones(1))
    for other in (tensor(3, 9, np.ones(1)), tensor(3, 8, np.ones(1), Grid(4, 8))):
        with pytest.raises(InputError, match="cannot share one call"):
            concatenate([one, other])
