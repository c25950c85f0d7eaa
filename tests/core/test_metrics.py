"""Relative errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitnet_onnx.metrics import Error, cosine, max_error, relative_error, sparsity, weighted_error


def test_relative_error() -> None:
    reference = np.array([[3, 0], [0, 4]], np.float32)
    assert relative_error(reference, reference) == 0
    assert relative_error(reference, np.zeros_like(reference)) == 1
    assert relative_error(reference, reference * np.float32(1.5)) == pytest.approx(0.5)


def test_parts_give_the_error_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    reference, other = rng.standard_normal((2, 10, 7)).astype(np.float32)
    error = Error()
    for start in (0, 4, 8):
        error.add(reference[start : start + 4], other[start : start + 4])
    assert error.relative == pytest.approx(relative_error(reference, other))


def test_nothing_against_something_is_infinite() -> None:
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert relative_error(zero, zero) == 0
    assert math.isinf(relative_error(zero, one))


def test_the_largest_and_smallest_floats() -> None:
    for magnitude in (3e38, 1e-40):
        values = np.array([magnitude, -magnitude], np.float32)
        assert relative_error(values, -values) == pytest.approx(2)


def test_signal_to_noise_is_in_decibels() -> None:
    reference = np.array([3, -4, 0], np.float32)
    assert Error.between(reference, reference * np.float32(1.1)).sqnr == pytest.approx(20, abs=1e-4)
    assert Error.between(reference, reference).sqnr == math.inf
    assert Error.between(reference * 0, reference).sqnr == -math.inf


def test_cosine() -> None:
    one, two = np.array([1, 0, 1], np.float32), np.array([1, 1, 0], np.float32)
    assert cosine(one, two) == pytest.approx(0.5)
    assert cosine(one, -one) == pytest.approx(-1)
    assert cosine(one * 0, two) == 0
    assert cosine(one * 0, two * 0) == 1
    assert cosine(np.full(3, 3e38, np.float32), np.full(3, 1e-40, np.float32)) == pytest.approx(1)


def test_max_error_finds_one_value_in_a_long_array() -> None:
    reference = np.zeros(200_000, np.float32)
    other = reference.copy()
    other[150_000] = -3
    assert max_error(reference, other) == 3
    assert max_error(np.array([3e38], np.float32), np.array([-3e38], np.float32)) == pytest.approx(6e38)
    assert max_error(reference[:0], other[:0]) == 0


def test_sparsity_counts_exact_zeros() -> None:
    assert sparsity(np.array([[0, -1], [0.0, 1e-40]], np.float32)) == 0.5
    assert sparsity(np.zeros((0, 3), np.int16)) == 0


def test_weighted_error_is_the_mean_squared_error_of_the_outputs() -> None:
    rng = np.random.default_rng(1)
    inputs, error = rng.standard_normal((500, 7), np.float32), rng.standard_normal((3, 7), np.float32)
    moment = inputs.T @ inputs / 500
    expected = np.square(inputs @ error.T).mean(axis=0).sum()
    assert weighted_error(error, [moment]) == pytest.approx(expected, rel=1e-5)
    # Features of different blocks are taken as if they had nothing to do with each other.
    moment[:4, 4:] = moment[4:, :4] = 0
    whole = weighted_error(error, [moment])
    assert weighted_error(error, [moment[:4, :4], moment[4:, 4:]]) == pytest.approx(whole, rel=1e-5)
