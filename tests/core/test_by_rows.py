"""Matrices that are quantized a few rows at a time: the same as at once, in bounded memory."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from bitnet_onnx import by_rows
from bitnet_onnx.by_rows import MatrixRows, recognize, to_integer, to_ternary
from bitnet_onnx.integer import quantize_integer
from bitnet_onnx.metrics import relative_error
from bitnet_onnx.quantized import QuantizedTensor
from bitnet_onnx.ternary import detect, quantize_absmean

RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((301, 96), np.float32)
TRITS = RNG.choice(np.array([-0.5, 0, 0.5], np.float32), (301, 96)) * RNG.random((301, 1), np.float32)


class Source:
    """A matrix that counts the rows read from it."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = weight
        self.read_rows = 0
        self._lock = threading.Lock()

    def rows(self) -> MatrixRows:
        rows, columns = self.weight.shape
        return MatrixRows((rows, columns), self._read)

    def _read(self, start: int, stop: int) -> np.ndarray:
        with self._lock:
            self.read_rows += stop - start
        return self.weight[start:stop].copy()


@pytest.fixture(params=["kept", "read again", "one thread", "one part"])
def division(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "one part":
        monkeypatch.setattr(by_rows, "_PART", 7 * 96)
    monkeypatch.setattr(by_rows, "_THREADS", 1 if request.param == "one thread" else 3)
    if request.param == "read again":
        monkeypatch.setattr(by_rows, "_KEPT", 1000)
    return str(request.param)


def assert_equal(tensor: QuantizedTensor | None, other: QuantizedTensor | None) -> None:
    assert tensor is not None
    assert other is not None
    assert tensor.grid == other.grid
    np.testing.assert_array_equal(tensor.raw, other.raw)
    np.testing.assert_array_equal(tensor.scale, other.scale)


@pytest.mark.parametrize(
    ("quantize", "expected"),
    [
        (to_ternary, quantize_absmean),
        (lambda rows: to_integer(rows, 8, 0), lambda weight: quantize_integer(weight, 8, 0)),
        (lambda rows: to_integer(rows, 4, 64), lambda weight: quantize_integer(weight, 4, 64)),
    ],
)
def test_parts_give_what_the_whole_gives(
    division: str,
    quantize: Callable[[MatrixRows], tuple[QuantizedTensor, float]],
    expected: Callable[[np.ndarray], QuantizedTensor],
) -> None:
    tensor, error = quantize(Source(FLOATS).rows())
    assert_equal(tensor, expected(FLOATS))
    assert error == pytest.approx(relative_error(FLOATS, tensor.dequantize()), rel=1e-12)


def test_ternary_rows_are_recognized(division: str) -> None:
    assert_equal(recognize(Source(TRITS).rows()), detect(TRITS))
    late = TRITS.copy()
    late[-1, :2] = 0.1, 0.2
    assert recognize(Source(late).rows()) is None
    assert recognize(Source(np.zeros((301, 96), np.float32)).rows()) is None


def test_ordinary_matrices_are_refused_on_their_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_rows, "_KEPT", 1000)
    source = Source(FLOATS)
    assert recognize(source.rows()) is None
    assert source.read_rows == 4


@pytest.mark.parametrize(("kept", "times"), [(1 << 25, 1), (1000, 2)])
def test_what_is_small_is_read_once(monkeypatch: pytest.MonkeyPatch, kept: int, times: int) -> None:
    monkeypatch.setattr(by_rows, "_KEPT", kept)
    source = Source(FLOATS)
    to_ternary(source.rows())
    assert source.read_rows == times * len(FLOATS)
    assert_equal(recognize(Source(TRITS).rows()), detect(TRITS))


def test_an_error_in_a_part_comes_out(division: str) -> None:
    def fail(start: int, part: np.ndarray) -> None:
        if start + len(part) == len(FLOATS):
            raise ValueError("bad rows")

    with pytest.raises(ValueError, match="bad rows"):
        list(Source(FLOATS).rows().map(fail))


def test_memory_is_that_of_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of 40,000 in 512 columns: 82 MB of floats, 20 MB of codes."""
    monkeypatch.setattr(by_rows, "_KEPT", 1 << 20)
    monkeypatch.setattr(by_rows, "_PART", 1 << 17)
    monkeypatch.setattr(by_rows, "_THREADS", 2)

    def read(start: int, stop: int) -> np.ndarray:
        values = np.arange(start * 512, stop * 512, dtype=np.float32) % 3 - 1
        return values.reshape(-1, 512)

    rows = MatrixRows((40_000, 512), read)
    for run in (recognize, to_ternary, lambda given: to_integer(given, 8, 0)):
        tracemalloc.start()
        result = run(rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result is not None
        assert peak < 45e6
