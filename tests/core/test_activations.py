"""Per-token int8 activations, RMSNorm, and the sum whose order is fixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet_onnx.activations import lanes16, quantize_activations, rms_norm

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


@given(tokens)
def test_activations_are_rounded_to_the_nearest_of_255(x: np.ndarray) -> None:
    q, scale = quantize_activations(x)
    assert q.shape == x.shape
    assert scale.shape == x.shape[:-1]
    error = np.abs(q / scale[..., None].astype(np.float64) - x)
    assert (error <= 0.5001 / scale[..., None]).all()
    large = np.abs(x).max(axis=-1) > 1e-5
    assert (np.abs(q.astype(int)).max(axis=-1) == 127)[large].all()


def test_ties_go_to_even() -> None:
    x = np.array([127, 0.5, 1.5, -0.5, -2.5], np.float32)
    assert quantize_activations(x)[0].tolist() == [127, 0, 2, 0, -2]


def test_small_and_zero_tokens_use_the_floor() -> None:
    q, scale = quantize_activations(np.array([[0, 0], [1e-6, 0]], np.float32))
    np.testing.assert_allclose(scale, 127e5, rtol=1e-6)
    assert q.tolist() == [[0, 0], [13, 0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_is_marked_and_no_other(bad: float) -> None:
    x = np.ones((3, 4), np.float32)
    x[1, 2] = bad
    q, scale = quantize_activations(x)
    assert np.isnan(scale).tolist() == [False, True, False]
    assert not q[1].any()
    assert (q[[0, 2]] == 127).all()


@given(tokens)
def test_rms_norm_is_near_float64(x: np.ndarray) -> None:
    weight = np.linspace(0.5, 2, x.shape[-1], dtype=np.float32)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(rms_norm(x, weight, 1e-5), expected, rtol=1e-5, atol=1e-5)
