"""Per-token integer activations, RMSNorm, and the sum whose order is fixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet_onnx.activations import PEAKS, lanes16, quantize_activations, rms_norm

tokens = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=40),
    elements=st.floats(-1e4, 1e4, width=32),
)


@given(hnp.arrays(np.float32, st.integers(1, 100), elements=st.floats(-1e4, 1e4, width=32)))
def test_lanes16_equals_a_scalar_loop(values: np.ndarray) -> None:
    lanes = [np.float32(0)] * 16
    for index in range(-(-len(values) // 16) * 16):
        value = values[index] if index < len(values) else np.float32(0)
        lanes[index % 16] = value if index < 16 else lanes[index % 16] + value
    for half in (8, 4, 2, 1):
        lanes = [lanes[index] + lanes[index + half] for index in range(half)]
    assert lanes16(values).tobytes() == lanes[0].tobytes()


@given(tokens, st.sampled_from((8, 16)))
def test_activations_are_rounded_to_the_nearest(x: np.ndarray, bits: int) -> None:
    q, scale = quantize_activations(x, bits)
    assert q.shape == x.shape
    assert scale.shape == x.shape[:-1]
    error = np.abs(q / scale[..., None].astype(np.float64) - x)
    # With 16 bits the rounding of `x * s` to float32 shows.
    assert (error <= (0.5001 if bits == 8 else 0.502) / scale[..., None]).all()
    large = np.abs(x).max(axis=-1) > 1e-5
    peak = np.abs(q.astype(int)).max(axis=-1, initial=0)
    assert (peak <= PEAKS[bits]).all()
    assert (peak == PEAKS[bits])[large].all()


@given(tokens)
def test_both_digits_of_16_bits_are_signed_bytes(x: np.ndarray) -> None:
    q = quantize_activations(x, 16)[0].astype(int)
    high = (q + 128) // 256
    assert np.abs(high).max() <= 127
    low = q - 256 * high
    assert low.min() >= -128
    assert low.max() <= 127


@given(st.floats(2.0**-16, 2.0**127, width=32))
def test_the_largest_value_lands_on_the_peak(value: float) -> None:
    for bits, peak in PEAKS.items():
        assert quantize_activations(np.array([value, -value], np.float32), bits)[0].tolist() == [peak, -peak]


def test_ties_go_to_even() -> None:
    x = np.array([127, 0.5, 1.5, -0.5, -2.5], np.float32)
    assert quantize_activations(x)[0].tolist() == [127, 0, 2, 0, -2]


def test_small_and_zero_tokens_use_the_floor() -> None:
    q, scale = quantize_activations(np.array([[0, 0], [1e-6, 0]], np.float32))
    np.testing.assert_allclose(scale, 127e5, rtol=1e-6)
    assert q.tolist() == [[0, 0], [13, 0]]
    assert quantize_activations(np.array([1e-6, 0], np.float32), 16)[0].tolist() == [3251, 0]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_is_marked_and_no_other(bad: float, bits: int) -> None:
    x = np.ones((3, 4), np.float32)
    x[1, 2] = bad
    q, scale = quantize_activations(x, bits)
    assert np.isnan(scale).tolist() == [False, True, False]
    assert not q[1].any()
    assert (q[[0, 2]] == PEAKS[bits]).all()


@given(tokens)
def test_rms_norm_is_near_float64(x: np.ndarray) -> None:
    weight = np.linspace(0.5, 2, x.shape[-1], dtype=np.float32)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(rms_norm(x, weight, 1e-5), expected, rtol=1e-5, atol=1e-5)
