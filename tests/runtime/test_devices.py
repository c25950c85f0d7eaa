from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort
import pytest

from bitnet_onnx.errors import OperatorError
from bitnet_onnx.runtime import Device, auto_select_device, devices


@pytest.fixture(autouse=True)
def _no_memory_of_earlier_choices() -> Iterator[None]:
    auto_select_device.cache_clear()
    yield
    auto_select_device.cache_clear()


def test_without_a_library_one_warning_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "library_path", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert auto_select_device() == auto_select_device() == Device("cpu", None)
    (record,) = caplog.records
    assert "slower" in record.getMessage()
    assert "C++17" in record.getMessage()


def test_a_library_that_loads_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    path = Path("/somewhere/libbitnet_ops.so")
    checked: list[Path] = []
    monkeypatch.setattr(devices, "library_path", lambda: path)
    monkeypatch.setattr(devices, "register_library", lambda options, path: checked.append(path))
    assert auto_select_device() == Device("cpu", path)
    assert checked == [path]
    assert not caplog.records


def test_a_library_that_does_not_load_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(OperatorError, match="cannot load the operator library") as caught:
        devices.register_library(ort.SessionOptions(), broken)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(devices, "library_path", lambda: broken)
    assert auto_select_device() == Device()
    assert str(broken) in caplog.records[0].getMessage()
