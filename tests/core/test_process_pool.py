"""Processes that are kept: how many, how long, and for whom."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bitnet_onnx.limited_process import Limits, ProcessEndedError
from bitnet_onnx.process_pool import Keeping, ProcessPool

LIMITS = Limits(megabytes=512, seconds=30)
WORKER = """
import os, time
ballast = []
def answer(request):
    word, _, argument = request.decode().partition(" ")
    if word == "sleep":
        time.sleep(float(argument))
    if word == "die":
        os._exit(7)
    if word == "fill":
        ballast.append(b"x" * (int(argument) << 20))
    return {"pid": os.getpid(), "of": argument}
"""


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(WORKER, "utf-8")
    return path


@pytest.fixture
def pool(worker: Path) -> Iterator[ProcessPool]:
    pool = ProcessPool(worker, LIMITS, Keeping(processes=2, answers=5, megabytes=100))
    yield pool
    pool.close()


def test_a_process_is_kept_and_replaced_when_it_has_answered_enough(pool: ProcessPool) -> None:
    pids = [pool.ask(b"pid")["pid"] for _ in range(11)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [5, 5, 1]


@pytest.mark.skipif(os.name != "posix", reason="the system does not say how much memory a process has held")
def test_a_process_that_held_much_memory_is_replaced(pool: ProcessPool) -> None:
    first = pool.ask(b"fill 10")["pid"]
    assert pool.ask(b"fill 100")["pid"] == first
    assert pool.ask(b"pid")["pid"] != first


def test_a_process_that_dies_fails_one_request(pool: ProcessPool) -> None:
    first = pool.ask(b"pid")["pid"]
    with pytest.raises(ProcessEndedError, match="status 7"):
        pool.ask(b"die")
    assert pool.ask(b"pid")["pid"] != first


def test_a_process_that_was_killed_while_idle_fails_none(pool: ProcessPool) -> None:
    first = pool.ask(b"pid")["pid"]
    (process,) = pool._idle
    process._process.kill()
    process._process.wait()
    assert pool.ask(b"pid")["pid"] != first


def test_many_threads_share_few_processes_and_each_gets_its_own_answer(pool: ProcessPool) -> None:
    seen: set[int] = set()

    def ask(index: int) -> bool:
        found = pool.ask(b"pid %d" % index)
        seen.add(found["pid"])
        assert len(pool._idle) <= 2
        return bool(found["of"] == str(index))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(80)))
    # None answers more than five, and two at a time may be cut short by the end.
    assert 16 <= len(seen) <= 18


def test_no_more_than_so_many_run_at_a_time(pool: ProcessPool) -> None:
    pool.ask(b"pid")
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        pids = {found["pid"] for found in threads.map(pool.ask, [b"sleep 0.3"] * 4)}
    assert len(pids) == 2
    assert time.monotonic() - started >= 0.6


def test_what_was_asked_before_the_end_is_answered(worker: Path) -> None:
    pool = ProcessPool(worker, LIMITS, Keeping(processes=2, answers=5, megabytes=100))
    pool.ask(b"pid")
    (idle,) = pool._idle
    answers: list[object] = []
    begun = threading.Event()

    def ask() -> None:
        begun.set()
        answers.append(pool.ask(b"sleep 0.5")["pid"])

    thread = threading.Thread(target=ask)
    thread.start()
    begun.wait()
    while pool._idle:  # until it is at work
        time.sleep(0.01)
    pool.close()
    thread.join()
    assert len(answers) == 1
    assert not idle.alive
    # Late requests are answered, and keep no process.
    assert pool.ask(b"pid 3")["of"] == "3"
    assert not pool._idle
    pool.close()
