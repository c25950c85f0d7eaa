from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime import memory
from bitnet_onnx.runtime.memory import HybridMemoryPool, default_budget, parse_bytes


def test_leases_share_one_budget() -> None:
    pool = HybridMemoryPool(100)
    first, second = pool.take("kv", 60), pool.take("cache", 40)
    assert first is not None
    assert second is not None
    assert pool.take("kv", 1) is None
    assert not first.resize(61)
    assert (first.nbytes, second.nbytes) == (60, 40)
    assert second.resize(10)
    assert first.resize(90)
    report = pool.report()
    assert (report.budget, report.used, report.peak, report.by_owner) == (100, 100, 100, {"kv": 90, "cache": 10})
    first.release()
    first.release()
    assert pool.report().by_owner == {"cache": 10}
    with second:
        pass
    assert (pool.report().used, pool.report().peak) == (0, 100)
    with pytest.raises(InputError, match="released already"):
        first.resize(1)


def test_nothing_is_always_to_be_had() -> None:
    pool = HybridMemoryPool(1)
    whole, nothing = pool.take("a", 1), pool.take("b", 0)
    assert whole is not None
    assert nothing is not None
    assert not nothing.resize(1)


def test_fragmentation_is_the_empty_part_of_keys_and_values() -> None:
    pool = HybridMemoryPool(1000)
    assert pool.report().fragmentation == 0
    kv, other = pool.take("kv", 200), pool.take("cache", 500)
    assert kv is not None
    assert other is not None
    assert pool.report().fragmentation == 1
    kv.fill(150)
    assert pool.report().fragmentation == pytest.approx(0.25)
    kv.fill(50)
    assert pool.report().fragmentation == pytest.approx(0.75)
    kv.release()
    assert pool.report().fragmentation == 0


@pytest.mark.parametrize("budget", [0, -1, 2**63])
def test_a_budget_out_of_range_is_refused(budget: int) -> None:
    with pytest.raises(InputError, match="memory budget"):
        HybridMemoryPool(budget)


def test_a_negative_size_is_refused() -> None:
    pool = HybridMemoryPool(10)
    with pytest.raises(InputError, match="-1 bytes of memory asked for by kv"):
        pool.take("kv", -1)
    assert pool.report().used == 0


def test_threads_lose_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = HybridMemoryPool(1000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    excess: list[int] = []
    refused: list[int] = []

    def work(owner: int) -> None:
        for turn in range(400):
            lease = pool.take(f"owner {owner}", 150 + turn % 7)
            if lease is None:
                refused.append(turn)
                continue
            lease.resize(300)
            lease.fill(turn)
            if pool.report().used > 1000:
                excess.append(turn)
            lease.release()

    threads = [threading.Thread(target=work, args=(owner,)) for owner in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    report = pool.report()
    assert not excess
    assert (report.used, report.by_owner) == (0, {})
    assert 300 <= report.peak <= 1000
    assert len(refused) < 8 * 400


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4GiB", 4 * 2**30),
        ("4g", 4 * 2**30),
        (" 1.5 GiB ", 3 * 2**29),
        ("500MB", 500_000_000),
        ("64k", 65536),
        ("2TiB", 2**41),
        ("7b", 7),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "0", "0.1", "-1", "1e9", "4 GiB x", "4XB", "nan", "99999999TiB", "9" * 400, "٤GiB", "1\n2"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="memory size") as caught:
        parse_bytes(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_default_is_half_of_what_the_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, own = tmp_path / "groups", tmp_path / "own"
    monkeypatch.setattr(memory, "_CGROUP", groups)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", own)
    machine = default_budget()
    assert 2 * machine >= 2**28  # no machine that runs this has less

    def write(path: str, text: str) -> None:
        (groups / path).parent.mkdir(parents=True, exist_ok=True)
        (groups / path).write_text(text)

    own.write_text("0::/a/b\n")
    write("memory.max", "max\n")
    write("a/memory.max", f"{2**20}\n")
    write("a/b/memory.max", f"{2**21}\n")
    assert default_budget() == 2**19
    write("a/memory.max", "max\n")
    assert default_budget() == 2**20
    own.write_text("0::/not/seen/from/here\n")
    write("memory.max", f"{2**22}\n")
    assert default_budget() == 2**21
    own.write_text("4:cpu,memory:/job\n2:cpu:/job\n0::/\n")
    write("memory.max", "max\n")
    write("memory/job/memory.limit_in_bytes", f"{2**23}\n")
    assert default_budget() == 2**22
    write("memory/job/memory.limit_in_bytes", "9223372036854771712\n")
    assert default_budget() == machine
