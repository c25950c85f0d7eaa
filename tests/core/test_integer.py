"""Rounding to nearest on 4, 6 and 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet_onnx import integer
from bitnet_onnx.errors import InputError
from bitnet_onnx.integer import quantize_integer

weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=70),
    elements=st.floats(-1000, 1000, width=32),
)


@given(weights, st.sampled_from((4, 6, 8)), st.sampled_from((0, 32, 64)))
def test_error_is_at_most_half_a_step(weight: np.ndarray, bits: int, group_size: int) -> None:
    tensor = quantize_integer(weight, bits, group_size)
    step = np.abs(tensor.step())
    used = step > 0
    error = np.abs(tensor.dequantize().astype(np.float64) - weight)
    # The grid has one value more on the side of the largest weight: on the other end a weight is clipped.
    clipped = tensor.raw == tensor.grid.levels - 1
    slack = 1 + 1e-4
    assert (error <= np.where(clipped, 1.0, 0.5) * slack * step)[used].all()
    # Where there is no step all weights of the group are zero, or too small for a normal float32 step.
    assert (np.abs(weight)[~used] <= np.finfo(np.float32).tiny * tensor.grid.zero_point).all()


@given(weights, st.sampled_from((4, 6, 8)))
def test_the_largest_weight_of_a_row_is_kept(weight: np.ndarray, bits: int) -> None:
    tensor = quantize_integer(weight, bits)
    peak = np.abs(weight).argmax(axis=1)
    rows = np.flatnonzero(tensor.scale)
    np.testing.assert_allclose(tensor.dequantize()[rows, peak[rows]], weight[rows, peak[rows]], rtol=1e-6)
    assert (tensor.raw[rows, peak[rows]] == 0).all()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_values_on_the_grid_are_exact(bits: int) -> None:
    half = 1 << (bits - 1)
    weight = np.arange(-half, half, dtype=np.float32)[None] * np.float32(0.125)
    tensor = quantize_integer(weight, bits)
    np.testing.assert_array_equal(tensor.dequantize(), weight)
    assert (tensor.grid.bits, tensor.grid.zero_point) == (bits, half)


def test_the_step_is_negative_where_the_largest_weight_is_positive() -> None:
    assert quantize_integer(np.array([[8, -1], [1, -8]], np.float32), 4).scale.tolist() == [-1, 1]


@pytest.mark.parametrize("group_size", [0, 32])
def test_zeros_and_denormals_become_zero_points(group_size: int) -> None:
    weight = np.zeros((2, 64), np.float32)
    weight[1, 3] = 1e-44
    tensor = quantize_integer(weight, 4, group_size)
    assert (tensor.raw == 8).all()
    assert not tensor.scale.any()


def test_the_largest_floats_stay_finite() -> None:
    top = np.finfo(np.float32).max
    tensor = quantize_integer(np.array([[top, -top, 1]], np.float32), 8)
    assert np.isfinite(tensor.dequantize()).all()


def test_the_last_group_may_be_short() -> None:
    weight = np.ones((3, 40), np.float32)
    weight[:, 32:] = 7
    tensor = quantize_integer(weight, 4, 32)
    assert tensor.scale.shape == (3, 2)
    np.testing.assert_array_equal(tensor.dequantize(), weight)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(1).standard_normal((50, 33), np.float32)
    whole = quantize_integer(weight, 6, 32)
    monkeypatch.setattr(integer, "_CHUNK", 7 * 33)
    parts = quantize_integer(weight, 6, 32)
    np.testing.assert_array_equal(whole.raw, parts.raw)
    np.testing.assert_array_equal(whole.scale, parts.scale)


def test_impossible_group_sizes_are_refused() -> None:
    for size in (-32, 1, 48):
        with pytest.raises(InputError, match=f"group size is {size}"):
            quantize_integer(np.ones((1, 96), np.float32), 4, size)
