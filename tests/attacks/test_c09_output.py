"""Class 9: external data of packages, existing outputs, links, full disks, interrupts."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bitnet_onnx.api import inspect
from bitnet_onnx.converters import convert
from bitnet_onnx.converters.onnx import package
from bitnet_onnx.converters.onnx._data_file import DataFile
from bitnet_onnx.errors import PackageError
from bitnet_onnx.runtime import load


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
    message = r"out/model\.onnx\.data: cannot be written: No space left on device \(\d+ bytes more needed, \d+ free\)"
    with pytest.raises(PackageError, match=message):
        convert(source, tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if old else [])


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of some kilobytes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small file system is mounted by root on Linux only")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("small_disk", [64], indirect=True)
def test_a_disk_that_is_too_small_is_told_at_once(source: Path, small_disk: Path) -> None:
    seen: list[object] = []
    with pytest.raises(PackageError, match=r"disk/a: the package takes more than the 65536 bytes that are free there"):
        convert(source, small_disk / "a" / "out", progress=lambda *report: seen.append(report))
    assert seen == []
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("small_disk", "words"),
    [
        (64, r"model\.onnx\.data: cannot be written: No space left on device \(\d+ bytes more needed, \d+ free\)"),
        (128, r"model\.onnx: cannot be written: No space left on device \(\d+ free\)"),
    ],
    indirect=["small_disk"],
)
def test_a_disk_that_fills_up(source: Path, small_disk: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "check_space", lambda *_: None)
    with pytest.raises(PackageError, match=words):
        convert(source, small_disk / "out")
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("limit", [100, 40_000])
def test_a_limit_of_file_sizes(source: Path, tmp_path: Path, limit: int) -> None:
    """The signal that the system sends must not kill the process before it has tidied up."""
    resource = pytest.importorskip("resource", reason="the system has no limits of file sizes")
    child = subprocess.run(
        [sys.executable, "-P", "-m", "bitnet_onnx", "convert", str(source), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (child.returncode, child.stdout) == (2, "")
    (line,) = child.stderr.splitlines()
    assert "cannot be written: File too large" in line
    assert "ulimit -f" in line
    assert list(tmp_path.iterdir()) == []


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


# --- external data of a package that somebody else made ---


@pytest.fixture
def package_copy(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package, and beside it the file `outside.data` with its weights."""
    folder = tmp_path_factory.mktemp("external")
    convert(source, folder / "package")
    shutil.copy(folder / "package" / "model.onnx.data", folder / "outside.data")
    return folder / "package"


def refer(directory: Path, **fields: str) -> None:
    """Change where the first tensor outside the graphs lies."""
    for name in ("model.onnx", "engine.onnx"):
        model = onnx.load(directory / name, load_external_data=False)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        for entry in tensor.external_data:
            entry.value = fields.get(entry.key, entry.value)
        onnx.save(model, directory / name)


def refusal(directory: Path) -> str:
    with pytest.raises(PackageError) as caught:
        load(directory)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(directory))
    return text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"location": "../outside.data"}, "escapes model directory"),
        ({"location": "a/../../outside.data"}, "External data path"),
        ({"location": "/etc/passwd"}, "Absolute path not allowed"),
        ({"location": "/dev/zero"}, "Absolute path not allowed"),
        ({"location": "absent.data"}, "does not exist"),
        ({"location": "config.json"}, "out of bounds"),
        ({"offset": str(1 << 40)}, "out of bounds"),
        ({"offset": "-16384"}, "out of bounds"),
        ({"offset": str((1 << 63) - 1)}, "overflow"),
        ({"offset": str(1 << 64)}, "Failed to parse"),
        ({"offset": "x"}, "Failed to parse"),
        ({"length": str(1 << 40)}, "size mismatch"),
    ],
)
def test_external_data_that_lies_elsewhere(package_copy: Path, fields: dict[str, str], words: str) -> None:
    refer(package_copy, **fields)
    assert words in refusal(package_copy)
    # Describing a package reads the manifest and never the tensors.
    assert inspect(package_copy).kind == "package"


def test_external_data_behind_a_link(package_copy: Path) -> None:
    (package_copy / "other.data").symlink_to(package_copy.parent / "outside.data")
    refer(package_copy, location="other.data")
    assert "escapes model directory" in refusal(package_copy)
    (package_copy / "model.onnx.data").unlink()
    (package_copy / "model.onnx.data").symlink_to(package_copy.parent / "outside.data")
    assert "a link that leaves the package" in refusal(package_copy)
    with pytest.raises(PackageError, match="a link that leaves the package"):
        inspect(package_copy)


def test_a_hard_link_is_the_file_itself(package_copy: Path) -> None:
    """Programs that store equal files once make them; whoever can make one could have copied the file."""
    data = package_copy / "model.onnx.data"
    data.unlink()
    os.link(package_copy.parent / "outside.data", data)
    model = load(package_copy)
    assert np.isfinite(model.session.step([1, 2], model.session.new_cache())).all()


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_external_data_that_was_cut_off(package_copy: Path, part: float) -> None:
    data = package_copy / "model.onnx.data"
    os.truncate(data, int(data.stat().st_size * part))
    assert "file_length" in refusal(package_copy) or part == 0
