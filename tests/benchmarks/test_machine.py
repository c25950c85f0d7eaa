"""The description of the machine, on this one and on others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitnet_onnx.benchmarks import machine

CPU_INFO = """\
processor\t: {0}
model name\t: Some CPU
physical id\t: 0
core id\t: {1}
flags\t: fpu avx2 avx512_vnni
"""


def test_this_machine() -> None:
    found = machine.describe()
    assert found["processor"]
    assert 1 <= found["cores"] <= found["logical_processors"]  # type: ignore[operator]


def test_two_threads_of_a_core_are_one_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("\n".join(CPU_INFO.format(processor, processor % 2) for processor in range(4)))
    monkeypatch.setattr(machine, "_CPU_INFO", info)
    monkeypatch.setattr(machine, "_usable", lambda: {0, 1, 2, 3})
    assert machine.physical_cores() == 2
    monkeypatch.setattr(machine, "_usable", lambda: {0, 2})
    assert machine.physical_cores() == 1
    found = machine.describe()
    assert found["processor"] == "Some CPU"
    assert found["flags"] == ["avx2", "avx512_vnni"]


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(machine, "_CACHES", tmp_path)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    found = machine.describe()
    assert found["last_level_cache_bytes"] is None
    assert found["memory_bytes"] is None
    assert found["flags"] == []
    assert found["cores"] == os.cpu_count()


def test_the_largest_cache_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, size in enumerate(("32K", "512K", "16M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    monkeypatch.setattr(machine, "_CACHES", tmp_path)
    assert machine.last_level_cache() == 16 << 20
