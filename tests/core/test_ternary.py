"""Absmean quantization and the recognition of ternary matrices."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet_onnx.quantized import QuantizedTensor
from bitnet_onnx.ternary import (
    DETECTED_GROUPS,
    DETECTED_SHARDS,
    TernaryRows,
    detect,
    group_sizes,
    mean_magnitude,
    quantize_absmean,
    row_magnitudes,
)

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
    for magnitude in (3.4028235e38, 3e38, 1e-45):
        tensor = quantize_absmean(np.array([[magnitude, -magnitude]], np.float32))
        assert np.isfinite(tensor.dequantize()).all()


KINDS = ("tensor", "row", *DETECTED_GROUPS, *(f"shards {count}" for count in DETECTED_SHARDS))


def random_ternary(seed: int, rows: int, groups: int, kind: str | int) -> tuple[np.ndarray, np.ndarray]:
    """Codes `[rows, groups, width]` and values `[rows, K]` with scales of a kind, some rows and groups all zero."""
    rng = np.random.default_rng(seed)
    if isinstance(kind, str) and kind.startswith("shards"):
        groups, width = int(kind.split()[1]), 32 * int(rng.integers(1, 12))
    else:
        width = kind if isinstance(kind, int) else 50
    trits = rng.integers(-1, 2, (rows, groups, width))
    trits *= rng.random((rows, 1, 1)) < 0.9
    trits *= rng.random((rows, groups, 1)) < 0.9
    scale = {"tensor": rng.random((1, 1, 1)), "row": rng.random((rows, 1, 1))}.get(str(kind))
    if scale is None:
        scale = rng.random((rows, groups, 1))
    # Any magnitude, down to where float32 has few bits left.
    scale = np.ldexp(scale + 0.5, int(rng.integers(-140, 127))).astype(np.float32)
    return trits, (trits * scale).astype(np.float32).reshape(rows, groups * width)


def assert_same(tensor: QuantizedTensor, weight: np.ndarray, trits: np.ndarray) -> None:
    """Bit for bit, but for the sign of zeros."""
    np.testing.assert_array_equal(tensor.dequantize().view(np.uint32), (weight + np.float32(0)).view(np.uint32))
    np.testing.assert_array_equal(tensor.signed(), trits.reshape(weight.shape))


@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from(KINDS), st.integers(0, 1 << 30))
def test_detect_is_exact(rows: int, groups: int, kind: str | int, seed: int) -> None:
    trits, weight = random_ternary(seed, rows, groups, kind)
    tensor = detect(weight)
    if not weight.any():
        assert tensor is None
        return
    assert tensor is not None
    assert_same(tensor, weight, trits)


@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from(KINDS), st.integers(0, 1 << 30), st.data())
def test_it_does_not_matter_how_many_rows_are_read_at_a_time(
    rows: int, groups: int, kind: str | int, seed: int, data: st.DataObject
) -> None:
    _, weight = random_ternary(seed, rows, groups, kind)
    cuts = sorted(data.draw(st.sets(st.integers(0, rows), max_size=5)) | {0, rows})
    found = TernaryRows(*weight.shape)
    for start, stop in reversed(list(pairwise(cuts))):
        assert found.add(start, weight[start:stop])
    parts, whole = found.tensor(), detect(weight)
    assert (parts is None) == (whole is None)
    if parts is not None and whole is not None:
        assert parts.grid == whole.grid
        np.testing.assert_array_equal(parts.scale, whole.scale)
        np.testing.assert_array_equal(parts.raw, whole.raw)


@given(weights, st.data())
def test_the_mean_does_not_depend_on_the_parts(weight: np.ndarray, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(weight)), max_size=5)) | {0, len(weight)})
    parts = [row_magnitudes(weight[start:stop]) for start, stop in pairwise(cuts)]
    assert mean_magnitude(parts, weight.size) == mean_magnitude([row_magnitudes(weight)], weight.size)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (2560, (1280, 640, 320, 256, 128, 64, 32)),
        (6912, (3456, 2304, 1728, 1152, 864, 256, 128, 64, 32)),
        (96, (32,)),
        (64, (32,)),
        (32, ()),
        (100, ()),
        (1, ()),
    ],
)
def test_groups_that_are_looked_for(columns: int, expected: tuple[int, ...]) -> None:
    assert group_sizes(columns) == expected


@pytest.mark.parametrize("kind", [*DETECTED_GROUPS, *(f"shards {count}" for count in DETECTED_SHARDS)])
def test_detect_finds_the_largest_group(kind: str | int) -> None:
    rng = np.random.default_rng(3)
    groups, size = (3, kind) if isinstance(kind, int) else (int(kind.split()[1]), 160)
    scale = np.repeat(rng.random((4, groups), np.float32) + np.float32(0.1), size, axis=1)
    weight = np.where(rng.random((4, groups * size)) < 0.5, scale, -scale)
    tensor = detect(weight)
    assert tensor is not None
    assert tensor.grid.group_size == size
    assert tensor.scale.shape == (4, groups)


def test_parts_of_different_kinds_give_the_finest() -> None:
    """A tensor's scale in the first rows, rows' scales in the next, groups' in the last, and zeros between."""
    rng = np.random.default_rng(5)
    signs = rng.choice(np.array([-1, 0, 1], np.float32), (40, 192))
    weight = signs * np.float32(0.25)
    weight[10:20] *= rng.random((10, 1), np.float32)
    weight[20:24] = 0
    weight[30:] *= np.repeat(rng.random((10, 3), np.float32), 64, axis=1)
    for stop, scales, size in ((10, (1,), 0), (30, (30,), 0), (40, (40, 3), 64)):
        tensor = detect(weight[:stop])
        assert tensor is not None
        assert (tensor.scale.shape, tensor.grid.group_size) == (scales, size)
        assert_same(tensor, weight[:stop], np.sign(weight[:stop]).astype(int))


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
