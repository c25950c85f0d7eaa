"""Class 9 as far as it is about what is written: existing outputs, links, full disks, interrupts."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import onnx_ir as ir
import pytest

from bitnet_onnx.converters import convert
from bitnet_onnx.converters.onnx._data_file import DataFile
from bitnet_onnx.errors import PackageError


@pytest.fixture
def source(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("untied_gqa")


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_existing_package_stays(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "package")
    before = snapshot(tmp_path)
    with pytest.raises(PackageError, match="exists: choose another output, or replace it with --overwrite"):
        convert(source, tmp_path / "package")
    assert snapshot(tmp_path) == before


def test_foreign_directories_are_never_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("mine")
    with pytest.raises(PackageError, match="is not a package of ours"):
        convert(source, tmp_path / "thesis", overwrite=True)
    assert snapshot(tmp_path) == {"thesis/chapter1": b"mine"}


def test_a_checkpoint_is_never_overwritten_by_its_conversion(source: Path, tmp_path: Path) -> None:
    """Even if it poses as a package of ours."""
    copy = shutil.copytree(source, tmp_path / "both")
    (copy / "bitnet_onnx.json").write_text("{}")
    before = snapshot(tmp_path)
    for output in (copy, copy / ".." / "both", tmp_path):
        with pytest.raises(PackageError, match="holds the checkpoint"):
            convert(copy, output, overwrite=True)
    assert snapshot(tmp_path) == before


def test_an_output_inside_the_checkpoint_is_fine(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    convert(copy, copy / "onnx")
    assert (copy / "onnx" / "model.onnx").exists()


def test_a_link_for_an_output_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match="is a symbolic link"):
        convert(source, tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path) == {}


class FullDisk:
    """A file that takes some bytes and then no more."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self._file = file
        self._room = room

    def write(self, data: memoryview) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 50_000])
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_leaves_nothing_and_takes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, old: bool
) -> None:
    if old:
        convert(source, tmp_path / "out")
    before = snapshot(tmp_path)
    create = DataFile.__init__

    def full(self: DataFile, path: Path) -> None:
        create(self, path)
        self._file = FullDisk(self._file, room)  # type: ignore[assignment]

    monkeypatch.setattr(DataFile, "__init__", full)
    with pytest.raises(PackageError, match="out: cannot be written: No space left on device"):
        convert(source, tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if old else [])


@pytest.mark.parametrize("victim", ["write_bytes", "write_text"])
def test_a_disk_that_fills_up_at_the_small_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, victim, full)
    with pytest.raises(PackageError, match="No space left on device"):
        convert(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["matrix", "graph"])
def test_an_interrupt_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if place == "graph":
        monkeypatch.setattr(ir, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "a" / "b", progress=interrupt if place == "matrix" else None)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_outside_the_package(source: Path, tmp_path: Path) -> None:
    """Names inside a checkpoint never become paths."""
    convert(source, tmp_path / "package")
    names = {path.name for path in (tmp_path / "package").iterdir()}
    assert names >= {"model.onnx", "model.onnx.data"}
    assert np.all([os.sep not in name for name in names])
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
