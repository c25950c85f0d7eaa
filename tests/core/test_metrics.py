"""Relative errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitnet_onnx.metrics import Error, relative_error


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
