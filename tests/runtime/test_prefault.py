from __future__ import annotations

import mmap
import platform
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitnet_onnx.runtime import Device, Model, PackageInfo, _prefault, generator

BYTES = 9 * 2**20 + 4096

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])


def resident(path: Path) -> int:
    """Bytes of the mapping of `path` that are in the page table."""
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.endswith(str(path)))
    return next(int(line.split()[1]) * 1024 for line in lines[start:] if line.startswith("Rss:"))


@linux
def test_a_mapped_file_is_mapped_in(tmp_path: Path) -> None:
    if kernel() < (6, 13):
        pytest.skip("this kernel populates no ranges at once")
    path = tmp_path / "two words"
    path.write_bytes(bytes(BYTES))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert resident(path) == 0
        thread = _prefault.prefault(path)
        if thread is None:
            pytest.skip("this C library has no process_madvise")
        thread.join()
        assert resident(path) == BYTES


@linux
def test_ranges_cover_the_mapping_and_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(BYTES))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        ranges = _prefault._mapped_ranges(str(path))
        assert [entry.length for entry in ranges] == [4 * 2**20, 4 * 2**20, 2**20 + 4096]
        assert [entry.base - ranges[0].base for entry in ranges] == [0, 4 * 2**20, 8 * 2**20]
        monkeypatch.setattr(_prefault, "_MAX_RANGES", 2)
        assert len(_prefault._mapped_ranges(str(path))) == 2


@linux
def test_without_a_mapping_or_the_means_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(BYTES))
    assert _prefault.prefault(path) is None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        with monkeypatch.context() as patch:
            patch.setattr(_prefault.ctypes, "CDLL", lambda name: SimpleNamespace())
            assert _prefault.prefault(path) is None
        monkeypatch.setattr(_prefault, "sys", SimpleNamespace(platform="win32"))
        assert _prefault.prefault(path) is None


@linux
def test_a_kernel_that_refuses_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: int) -> int:
        raise PermissionError

    path = tmp_path / "data"
    path.write_bytes(bytes(BYTES))
    monkeypatch.setattr(_prefault.os, "pidfd_open", refuse)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        if (thread := _prefault.prefault(path)) is None:
            pytest.skip("this C library has no process_madvise")
        thread.join()  # an exception in a thread is a warning, and that an error
        assert resident(path) == 0


@pytest.mark.parametrize("library", [True, False])
def test_only_weights_that_are_read_in_place_are_mapped_in(
    package: PackageInfo, monkeypatch: pytest.MonkeyPatch, library: bool
) -> None:
    paths: list[Path] = []
    monkeypatch.setattr(generator, "prefault", paths.append)
    monkeypatch.setattr("bitnet_onnx.runtime._decoder_graph.check_operators", lambda *_: None)
    monkeypatch.setattr("bitnet_onnx.runtime.devices.register_library", lambda *_: None)
    Model(package, Device(operator_library=Path("any")) if library else Device(), threads=1)
    assert paths == ([package.directory / "model.onnx.data"] if library else [])


@linux
def test_a_file_that_fills_memory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(8192))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        monkeypatch.setattr(_prefault, "_available_bytes", lambda: 2 * 8192 - 2)
        assert _prefault.prefault(path) is None
