"""The limits of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_onnx.benchmarks import roofline
from bitnet_onnx.benchmarks.roofline import Meter, Roofline, roofline_path
from bitnet_onnx.errors import OperatorError


@pytest.mark.parametrize("threads", [1, 3])
def test_rates_are_positive(threads: int) -> None:
    path = roofline_path()
    if path is None:
        pytest.skip("the library of the limits is not built: no C++17 compiler when bitnet-onnx was installed")
    found = Meter(path, 1 << 20).measure(threads, seconds=0.01)
    assert found.threads == threads
    assert found.read_bytes_per_s > 0
    assert found.multiply_adds_per_s is None or found.multiply_adds_per_s > 0


def test_the_slower_limit_counts() -> None:
    limit = Roofline(1, read_bytes_per_s=10, multiply_adds_per_s=100)
    assert limit.seconds(weight_bytes=20, multiply_adds=100) == 2
    assert limit.seconds(weight_bytes=20, multiply_adds=300) == 3
    assert Roofline(1, 10, None).seconds(20, 300) == 2


def test_the_best_of_two_measurements_is_kept() -> None:
    first, second = Roofline(2, 10, 5), Roofline(2, 8, 7)
    assert first.best(None) is first
    assert first.best(second) == Roofline(2, 10, 7)
    assert Roofline(2, 10, None).best(Roofline(2, 11, None)) == Roofline(2, 11, None)


def test_a_library_that_is_none(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(OperatorError, match=r"broken\.so cannot be used: "):
        Meter(broken)


def test_it_lies_beside_the_operator_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "library_path", lambda: None)
    assert roofline_path() is None
    monkeypatch.setattr(roofline, "library_path", lambda: tmp_path / "libbitnet_ops.so")
    monkeypatch.setattr(roofline.sys, "platform", "linux")
    assert roofline_path() is None
    (tmp_path / "libbitnet_roofline.so").touch()
    assert roofline_path() == tmp_path / "libbitnet_roofline.so"
