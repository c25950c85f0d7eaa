from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort
import pytest

from bitnet_onnx.custom_ops import metal_library_path
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
    with pytest.raises(OperatorError, match=r"libbroken\.so is not a shared library") as caught:
        devices.register_library(ort.SessionOptions(), broken)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(devices, "library_path", lambda: broken)
    assert auto_select_device() == Device()
    assert str(broken) in caplog.records[0].getMessage()


def test_a_library_that_was_asked_for_must_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("BITNET_ONNX_OPS_LIBRARY", str(broken))
    with pytest.raises(OperatorError, match="BITNET_ONNX_OPS_LIBRARY names it: correct or unset the variable"):
        auto_select_device()


@pytest.fixture
def metal_library(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Metal provider that finds a device, and an operator library."""
    path = Path("/somewhere/libbitnet_metal.dylib")
    monkeypatch.setattr(devices, "metal_library_path", lambda: path)
    monkeypatch.setattr(devices._metal, "find_device", lambda path: object())
    monkeypatch.setattr(devices, "library_path", lambda: None)
    return path


@pytest.mark.parametrize(
    ("variable", "platform", "kind"),
    [
        ("", "darwin", "metal"),
        ("", "linux", "cpu"),
        ("cpu", "darwin", "cpu"),
        ("metal", "linux", "metal"),
        ("metal", "darwin", "metal"),
    ],
)
def test_metal_is_preferred_on_a_mac(
    monkeypatch: pytest.MonkeyPatch, metal_library: Path, variable: str, platform: str, kind: str
) -> None:
    monkeypatch.setenv("BITNET_ONNX_DEVICE", variable)
    monkeypatch.setattr(devices.sys, "platform", platform)
    device = auto_select_device()
    assert device.kind == kind
    assert device.metal_library == (metal_library if kind == "metal" else None)


def test_a_device_that_is_unknown_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_ONNX_DEVICE", "cuda")
    with pytest.raises(OperatorError, match="BITNET_ONNX_DEVICE is 'cuda', expected cpu or metal"):
        auto_select_device()


def test_metal_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "metal_library_path", lambda: None)
    monkeypatch.setenv("BITNET_ONNX_DEVICE", "metal")
    with pytest.raises(OperatorError, match="the Metal provider is not built"):
        auto_select_device()


def test_a_mac_without_a_device_runs_on_its_processor(monkeypatch: pytest.MonkeyPatch, metal_library: Path) -> None:
    def fail(path: Path) -> object:
        raise OperatorError("no Metal device")

    monkeypatch.setattr(devices._metal, "find_device", fail)
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    assert auto_select_device().kind == "cpu"


def test_the_metal_library_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITNET_ONNX_METAL_LIBRARY", str(tmp_path / "none.dylib"))
    with pytest.raises(OperatorError, match=r"BITNET_ONNX_METAL_LIBRARY is '.*none.dylib', which is not a file"):
        metal_library_path()
    (tmp_path / "none.dylib").touch()
    assert metal_library_path() == tmp_path / "none.dylib"
