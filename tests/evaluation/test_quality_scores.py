"""Logits into probabilities and distances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitnet_onnx.evaluation.quality import _scores
from bitnet_onnx.evaluation.quality._reader import chunk_size
from bitnet_onnx.evaluation.quality._scores import Distribution
from bitnet_onnx.evaluation.quality._windows_measured import mean
from bitnet_onnx.evaluation.quality.result import Share


def softmax(logits: np.ndarray) -> np.ndarray:
    wide = np.exp(logits.astype(np.float64) - logits.astype(np.float64).max(axis=1, keepdims=True))
    return wide / wide.sum(axis=1, keepdims=True)


@pytest.fixture(params=[1, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A row at a time, and all at once."""
    monkeypatch.setattr(_scores, "_BLOCK", request.param)
    return int(request.param)


def logits(seed: int, scale: float = 5.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((7, 1000)) * scale).astype(np.float32)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("scale", [0.01, 5.0, 200.0])
def test_against_float64(scale: float) -> None:
    left, right = logits(1, scale), logits(2, scale)
    p, q = softmax(left), softmax(right)
    targets = np.arange(7) * 100
    one, other = Distribution.of(left), Distribution.of(right)
    wide = left.astype(np.float64)
    log_p = wide - wide.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(one.surprise(targets), -log_p[np.arange(7), targets], rtol=1e-6, atol=1e-6)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(p > 0, p * (np.log(p) - np.log(q)), 0).sum(axis=1)
    # Where q underflows in float64 the direct sum is infinite; this one is not.
    finite = np.isfinite(expected)
    np.testing.assert_allclose(one.divergence(other)[finite], expected[finite], rtol=1e-5, atol=1e-6)
    assert np.isfinite(one.divergence(other)).all()
    np.testing.assert_array_equal(one.best(), left.argmax(axis=1))


@pytest.mark.usefixtures("block")
def test_a_distribution_is_at_no_distance_from_itself() -> None:
    one = Distribution.of(logits(3))
    np.testing.assert_array_equal(one.divergence(one), np.zeros(7))
    moved = Distribution.of(logits(3) + np.float32(1))
    np.testing.assert_allclose(one.divergence(moved), 0, atol=1e-6)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    one = Distribution.of(np.full((2, 49152), -3.5, np.float32))
    np.testing.assert_allclose(one.surprise(np.array([0, 49151])), math.log(49152), rtol=1e-12)


def test_what_is_not_finite_shows() -> None:
    for value in (math.nan, math.inf):
        broken = logits(4)
        broken[2, 5] = value
        assert np.isfinite(Distribution.of(broken).log_sum).tolist() == [True, True, False, True, True, True, True]
    masked = logits(4)
    masked[2, 5] = -math.inf
    assert Distribution.of(masked).surprise(np.full(7, 5))[2] == math.inf


def test_rows_at_a_time() -> None:
    assert chunk_size(49152) == 256
    assert chunk_size(515) == 256
    for vocabulary in (128256, 262144, 1 << 24):
        assert chunk_size(vocabulary) * vocabulary * 4 <= max(48 << 20, vocabulary * 4)


def test_the_error_of_a_mean_over_windows() -> None:
    sums = [[10.0, 14.0, 12.0, 20.0]]
    counts = [[4, 4, 4, 4]]
    means = np.array(sums[0]) / 4
    found = mean([(sums[0], counts[0])])
    assert found.value == pytest.approx(means.mean())
    assert found.error == pytest.approx(means.std(ddof=1) / 2)
    # Strata: the difference between two texts is no error.
    apart = mean([([4.0, 4.0], [4, 4]), ([40.0, 40.0], [4, 4])])
    assert apart.value == pytest.approx(5.5)
    assert apart.error == 0
    uneven = mean([([2.0, 9.0], [2, 3])])
    assert uneven.value == pytest.approx(11 / 5)
    rest = np.array([2.0, 9.0]) - 11 / 5 * np.array([2, 3])
    assert uneven.error == pytest.approx(math.sqrt(2 * np.square(rest).sum()) / 5)
    assert mean([([2.0], [2])]).error is None


def test_the_error_is_what_repetition_shows() -> None:
    """A hundred texts of windows of different sizes: their means scatter as the error says."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(400):
        counts = rng.integers(10, 30, 40)
        sums = counts * rng.normal(3.0, 0.5, 40)
        found.append(mean([(sums.tolist(), counts.tolist())]))
    scatter = np.std([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(scatter, rel=0.1)


def test_the_interval_of_wilson() -> None:
    share = Share.of(8, 10)
    assert (share.value, share.low, share.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert Share.of(0, 5).low == 0
    assert Share.of(5, 5).high == 1
