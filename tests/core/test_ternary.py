"""Absmean quantization and the recognition of ternary matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet_onnx.ternary import DETECTED_GROUPS, detect, quantize_absmean

weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
    elements=st.floats(-100, 100, width=32),
)


@given(weights)
def test_absmean_codes_equal_an_independent_formulation(weight: np.ndarray) -> None:
    tensor = quantize_absmean(weight)
    step = max(sum(abs(float(value)) for value in weight.flat) / weight.size, 1e-5)
    ratio = weight.astype(np.float64) / step
    expected = np.where(ratio > 0.5, 1, np.where(ratio < -0.5, -1, 0))
    # Rounding to float32 decides where a weight lies on the border between two codes.
    certain = np.abs(np.abs(ratio) - 0.5) > 1e-5
    np.testing.assert_array_equal(tensor.signed()[certain], expected[certain])
    assert set(np.unique(tensor.raw)) <= {1, 2, 3}
    np.testing.assert_allclose(tensor.scale, [step], rtol=1e-6)


def test_absmean_of_the_border_goes_to_even() -> None:
    # The mean magnitude is exactly 1, so 0.5 lies on the border and rounds to zero, 1.5 is clipped.
    tensor = quantize_absmean(np.array([[0.5, -0.5, 1.5, -1.5]], np.float32))
    assert tensor.signed().tolist() == [[0, 0, 1, -1]]


def test_absmean_of_zeros_is_zeros() -> None:
    tensor = quantize_absmean(np.zeros((3, 5), np.float32))
    assert not tensor.dequantize().any()
    np.testing.assert_allclose(tensor.scale, [1e-5], rtol=1e-6)


def test_absmean_of_extreme_magnitudes_stays_finite() -> None:
    for magnitude in (3e38, 1e-45):
        tensor = quantize_absmean(np.array([[magnitude, -magnitude]], np.float32))
        assert np.isfinite(tensor.dequantize()).all()


@given(
    rows=st.integers(1, 70),
    groups=st.integers(1, 3),
    kind=st.sampled_from(("tensor", "row", *DETECTED_GROUPS)),
    seed=st.integers(0, 1 << 30),
)
def test_detect_is_exact(rows: int, groups: int, kind: str | int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width = kind if isinstance(kind, int) else 50
    columns = groups * width
    trits = rng.integers(-1, 2, (rows, groups, width))
    scale = {"tensor": rng.random((1, 1, 1)), "row": rng.random((rows, 1, 1))}.get(kind, rng.random((rows, groups, 1)))
    weight = (trits * (scale + 0.01).astype(np.float32)).astype(np.float32).reshape(rows, columns)
    tensor = detect(weight)
    if not weight.any():
        assert tensor is None
        return
    assert tensor is not None
    np.testing.assert_array_equal(tensor.dequantize(), weight)
    np.testing.assert_array_equal(tensor.signed(), trits.reshape(rows, columns))


@pytest.mark.parametrize("size", DETECTED_GROUPS)
def test_detect_finds_the_largest_group(size: int) -> None:
    rng = np.random.default_rng(size)
    scale = np.repeat(rng.random((4, 3), np.float32) + np.float32(0.1), size, axis=1)
    weight = np.where(rng.random((4, 3 * size)) < 0.5, scale, -scale)
    tensor = detect(weight)
    assert tensor is not None
    assert tensor.grid.group_size == size
    assert tensor.scale.shape == (4, 3)


def test_detect_keeps_denormals_and_signed_zeros() -> None:
    tiny = np.float32(1e-45)
    weight = np.array([[tiny, -tiny, np.float32(-0.0), 0]], np.float32)
    tensor = detect(weight)
    assert tensor is not None
    np.testing.assert_array_equal(tensor.dequantize(), weight)


@given(weights)
def test_detect_never_claims_what_it_would_change(weight: np.ndarray) -> None:
    tensor = detect(weight)
    if tensor is not None:
        np.testing.assert_array_equal(tensor.dequantize(), weight)


@given(st.integers(0, 1 << 30), st.sampled_from([(5, 96), (64, 64), (130, 256)]))
def test_detect_refuses_one_wrong_weight(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.choice(np.array([-0.5, 0, 0.5], np.float32), shape)
    weight[:, 0] = 0.5  # every row has the full magnitude
    assert detect(weight) is not None
    weight[rng.integers(shape[0]), rng.integers(1, shape[1])] = 0.25
    # A group that holds nothing else than the intruder would be ternary by itself, which cannot be at 32 columns.
    assert detect(weight) is None


def test_detect_of_ordinary_weights_is_none() -> None:
    rng = np.random.default_rng(0)
    assert detect(rng.standard_normal((64, 256), np.float32)) is None
    assert detect(np.zeros((4, 4), np.float32)) is None
    assert detect(np.zeros((0, 4), np.float32)) is None
