"""Where the cache is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_onnx.errors import ZooError
from bitnet_onnx.model_zoo import cache_root


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("BITNET_ONNX_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("platform", "folder"),
    [
        ("linux", ".cache/bitnet-onnx"),
        ("darwin", "Library/Caches/bitnet-onnx"),
        ("win32", "AppData/Local/bitnet-onnx/cache"),
    ],
)
def test_each_platform_has_its_place(home: Path, platform: str, folder: str) -> None:
    assert cache_root(platform) == home / folder


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("BITNET_ONNX_CACHE", str(home / "mine"))
    assert cache_root() == home / "mine"


def test_xdg_is_followed_unless_it_is_relative(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert cache_root("linux") == home / "xdg" / "bitnet-onnx"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root("linux") == home / ".cache" / "bitnet-onnx"


def test_local_app_data_is_followed(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("LOCALAPPDATA", str(home / "local"))
    assert cache_root("win32") == home / "local" / "bitnet-onnx" / "cache"


def test_no_home_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ZooError, match="set BITNET_ONNX_CACHE"):
        cache_root("linux")
