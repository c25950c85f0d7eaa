"""Weights are hashed while they are converted."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bitnet_onnx.converters.checkpoints._files import BinaryFile, hashing, sha256_of
from bitnet_onnx.errors import CheckpointError


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_500_000])
def test_the_digest_is_that_of_the_file(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "a").write_bytes(content)
    with BinaryFile(tmp_path / "a") as file, hashing({"a": file}) as digest:
        assert digest() == hashlib.sha256(content).hexdigest()
        assert digest() == sha256_of({"a": file})


def test_reads_by_several_threads_do_not_mix(tmp_path: Path) -> None:
    values = np.arange(1_000_000, dtype="<u4")
    (tmp_path / "a").write_bytes(values.tobytes())
    wrong: list[int] = []

    def read(file: BinaryFile, seed: int) -> None:
        for start in np.random.default_rng(seed).integers(0, values.size - 1000, 300):
            part = np.empty(1000, "<u4")
            file.read_into(int(start) * 4, part)
            if not np.array_equal(part, values[start : start + 1000]):
                wrong.append(int(start))

    with BinaryFile(tmp_path / "a") as file, hashing({"a": file}) as digest:
        threads = [threading.Thread(target=read, args=(file, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert digest() == hashlib.sha256(values.tobytes()).hexdigest()
    assert wrong == []


def test_without_positioned_reads_a_lock_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv", raising=False)
    test_reads_by_several_threads_do_not_mix(tmp_path)


def test_a_file_that_shrinks_is_told_where_the_digest_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(5_000_000))
    with BinaryFile(tmp_path / "a") as file:
        os.truncate(tmp_path / "a", 4_000_000)
        with hashing({"a": file}) as digest, pytest.raises(CheckpointError, match="a: ends at byte 4000000"):
            digest()


def test_leaving_stops_it(tmp_path: Path) -> None:
    """A file of 100 GB, all of it a hole, is not read to its end."""
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", 100 * 10**9)
    started = time.process_time()
    with BinaryFile(tmp_path / "a") as file, pytest.raises(KeyboardInterrupt), hashing({"a": file}):
        raise KeyboardInterrupt
    assert time.process_time() - started < 10
