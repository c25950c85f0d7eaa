"""Least squares: the optimum by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_inputs import correlated, energies_of, statistics_of

from bitnet_onnx.errors import InputError
from bitnet_onnx.integer import integer_grid
from bitnet_onnx.quantization.least_squares import LeastSquares
from bitnet_onnx.quantization.rtn import Rtn
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import Grid, QuantizedTensor
from bitnet_onnx.ternary import quantize_absmean


def row_errors(weight: np.ndarray, tensor: QuantizedTensor, statistics: InputStatistics | None) -> np.ndarray:
    energy = 1 if statistics is None else energies_of(statistics)
    return (np.square(weight.astype(np.float64) - tensor.dequantize()) * energy).sum(axis=1)


def best_ternary(weights: np.ndarray, energy: np.ndarray) -> float:
    """The least error of one group over all sets of weights that are not zero, each with its best step."""
    least = (energy * weights**2).sum()
    for chosen in range(1, 1 << len(weights)):
        support = np.array([bool(chosen >> k & 1) for k in range(len(weights))])
        total = (energy * support).sum()
        step = (energy * np.abs(weights) * support).sum() / total if total else 0.0
        least = min(least, (energy * (np.abs(weights) - step * support) ** 2).sum())
    return float(least)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_ternary_rows_reach_the_optimum_of_brute_force(seed: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((2, 9)) ** 3).astype(np.float32)
    statistics = statistics_of(correlated(seed, 50, 9)) if weighted else None
    energy = energies_of(statistics) if statistics else np.ones(9)
    found = row_errors(weight, LeastSquares()(weight, Grid(2, 2), statistics), statistics)
    expected = [best_ternary(row.astype(np.float64), energy) for row in weight]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_groups_are_what_rows_would_be() -> None:
    weight = np.random.default_rng(1).standard_normal((7, 100), np.float32)
    grouped = LeastSquares()(weight, Grid(2, 2, 32))
    assert grouped.scale.shape == (7, 4)
    for group in range(4):
        own = slice(32 * group, 32 * group + 32)
        rows = LeastSquares()(weight[:, own], Grid(2, 2))
        np.testing.assert_array_equal(grouped.raw[:, own], rows.raw)
        np.testing.assert_allclose(grouped.scale[:, group], rows.scale, rtol=1e-6)


def test_a_ternary_matrix_comes_back_as_it_was() -> None:
    rng = np.random.default_rng(2)
    weight = rng.integers(-1, 2, (20, 64)) * rng.uniform(1, 2, (20, 1)).astype(np.float32)
    tensor = LeastSquares()(weight.astype(np.float32), Grid(2, 2))
    np.testing.assert_allclose(tensor.dequantize(), weight, rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_one_scale_for_the_matrix_is_that_of_one_long_row(seed: int, weighted: bool) -> None:
    weight = (np.random.default_rng(seed).standard_normal((30, 40)) ** 3).astype(np.float32)
    statistics = statistics_of(correlated(seed, 90, 40)) if weighted else None
    tensor = LeastSquares(per_tensor=True)(weight, Grid(2, 2), statistics)
    assert tensor.scale.shape == (1,)
    found = row_errors(weight, tensor, statistics).sum()
    # As one row all of it has one step; the energies are repeated along it.
    energy = np.tile(energies_of(statistics), 30) if statistics else None
    long = None if energy is None else statistics_of(np.sqrt(energy)[None].astype(np.float32), [1] * 1200)
    row = LeastSquares()(weight.reshape(1, -1), Grid(2, 2), long)
    optimum = row_errors(weight.reshape(1, -1), row, long).sum()
    assert found <= optimum * (1 + 1e-3)
    assert found <= row_errors(weight, quantize_absmean(weight), statistics).sum() * (1 + 1e-6)


@given(st.integers(0, 1000), st.sampled_from([2, 4, 6, 8]), st.sampled_from([0, 32]), st.booleans())
def test_integers_are_never_worse_than_the_search(seed: int, bits: int, group_size: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    columns = int(rng.integers(1, 70))
    weight = (rng.standard_normal((4, columns)) ** 3).astype(np.float32)
    statistics = statistics_of(correlated(seed, 20, columns)) if weighted else None
    grid = integer_grid(bits, group_size)
    found, searched, plain = (
        row_errors(weight, method(weight, grid, statistics), statistics)
        for method in (LeastSquares(), Rtn(), Rtn(search=False))
    )
    slack = 1e-9 * np.square(weight).sum(axis=1) * (energies_of(statistics).max() if statistics else 1)
    assert (found <= searched * (1 + 1e-4) + slack).all()
    assert (searched <= plain * (1 + 1e-4) + slack).all()


def test_one_scale_of_zeros() -> None:
    tensor = LeastSquares(per_tensor=True)(np.zeros((3, 40), np.float32), Grid(2, 2))
    assert tensor.scale.shape == (1,)
    assert not tensor.dequantize().any()


def test_one_scale_is_for_ternary_weights_without_groups() -> None:
    for grid in (integer_grid(4), Grid(2, 2, 32)):
        with pytest.raises(InputError, match="for ternary weights without groups only"):
            LeastSquares(per_tensor=True)(np.ones((2, 64), np.float32), grid)
