"""Rounding to nearest with a search for the step, and absmean as a method."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from layer_inputs import correlated, energies_of, statistics_of

from bitnet_onnx.errors import InputError
from bitnet_onnx.integer import integer_grid, quantize_integer
from bitnet_onnx.quantization import rtn
from bitnet_onnx.quantization.absmean import Absmean
from bitnet_onnx.quantization.rtn import Rtn
from bitnet_onnx.quantized import Grid
from bitnet_onnx.ternary import quantize_absmean

weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 70)),
    elements=st.floats(-1000, 1000, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6),
)


@given(weights, st.sampled_from([2, 4, 6, 8]), st.sampled_from([0, 32]))
def test_without_a_search_it_is_the_plain_quantizer(weight: np.ndarray, bits: int, group_size: int) -> None:
    tensor = Rtn(search=False)(weight, integer_grid(bits, group_size))
    plain = quantize_integer(weight, bits, group_size)
    np.testing.assert_array_equal(tensor.raw, plain.raw)
    np.testing.assert_array_equal(tensor.scale, plain.scale)
    assert tensor.grid == plain.grid


@given(weights, st.sampled_from([0, 32]), st.booleans())
def test_no_group_loses_by_more_bits(weight: np.ndarray, group_size: int, search: bool) -> None:
    """Values of fewer bits are among those of more: 2 steps up, -8 quarters of the other sign down."""
    errors = [
        np.square(weight.astype(np.float64) - Rtn(search)(weight, integer_grid(bits, group_size)).dequantize()).sum()
        for bits in (2, 4, 6, 8)
    ]
    slack = 1e-9 * float(np.square(weight.astype(np.float64)).sum())
    assert all(finer <= coarser * (1 + 1e-4) + slack for coarser, finer in pairwise(errors))


def test_two_bits_are_minus_one_to_two_times_a_scale_of_either_sign() -> None:
    weight = np.array([[2, 1, 0, -1], [-2, -1, 0, 1]], np.float32)
    tensor = Rtn()(weight, integer_grid(2))
    assert tensor.scale.tolist() == [1, -1]
    assert tensor.raw.tolist() == [[3, 2, 1, 0], [3, 2, 1, 0]]
    np.testing.assert_array_equal(tensor.dequantize(), weight)


def test_the_near_end_is_tried_too() -> None:
    """Three values around zero fit with either sign; plain rounding would put the largest on the far end."""
    weight = np.array([[1, -1, 0.999, -0.999] * 8], np.float32)
    assert np.abs(weight - Rtn()(weight, integer_grid(2)).dequantize()).max() < 0.01
    assert np.abs(weight - Rtn(search=False)(weight, integer_grid(2)).dequantize()).max() >= 0.499


def test_a_weight_of_no_energy_is_clipped() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 64), np.float32)
    weight[:, 5] = 6
    inputs = correlated(1, 100, 64)
    inputs[:, 5] = 0
    statistics = statistics_of(inputs)
    found, blind = (Rtn()(weight, integer_grid(4), known) for known in (statistics, None))
    energy = energies_of(statistics)
    errors = [(np.square(weight - one.dequantize()) * energy).sum() for one in (found, blind)]
    assert errors[0] < 0.6 * errors[1]


def test_parts_of_the_search_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(2).standard_normal((50, 33), np.float32)
    whole = Rtn()(weight, integer_grid(4, 32))
    monkeypatch.setattr(rtn, "_PART", 7 * 33)
    parts = Rtn()(weight, integer_grid(4, 32))
    np.testing.assert_array_equal(whole.raw, parts.raw)
    np.testing.assert_array_equal(whole.scale, parts.scale)


def test_absmean_is_that_of_the_matrix_or_of_each_group() -> None:
    weight = np.random.default_rng(3).standard_normal((6, 80), np.float32)
    whole, expected = Absmean()(weight, Grid(2, 2)), quantize_absmean(weight)
    np.testing.assert_array_equal(whole.raw, expected.raw)
    np.testing.assert_array_equal(whole.scale, expected.scale)
    grouped = Absmean()(weight, Grid(2, 2, 32))
    for group, own in enumerate((slice(0, 32), slice(32, 64), slice(64, 80))):
        for row in range(6):
            expected = quantize_absmean(weight[row : row + 1, own])
            np.testing.assert_array_equal(grouped.raw[row, own], expected.raw[0])
            assert grouped.scale[row, group] == pytest.approx(expected.scale[0], rel=1e-6)


def test_grids_that_a_method_does_not_make_are_refused() -> None:
    weight = np.ones((2, 64), np.float32)
    with pytest.raises(InputError, match="absmean makes ternary weights, not 4 bits"):
        Absmean()(weight, integer_grid(4))
    with pytest.raises(InputError, match="rtn makes weights of 2, 4, 6 or 8 bits"):
        Rtn()(weight, Grid(2, 2))
