"""Work in processes with limits: what ends them, what is seen of that, and that none is left."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_onnx import _limited_main, limited_process
from bitnet_onnx._limited_main import ANSWER, LENGTH
from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.limited_process import LimitedProcess, Limits, ProcessEndedError, run_limited

LIMITS = Limits(megabytes=512, seconds=20)
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit on the address space")
Write = Callable[[str], Path]


@pytest.fixture
def worker(tmp_path: Path) -> Write:
    def write(body: str) -> Path:
        path = tmp_path / f"{abs(hash(body))}.py"
        path.write_text(f"import os, signal, sys, time\nseen = []\ndef answer(request):\n    {body}\n", "utf-8")
        return path

    return write


def gone(pid: int) -> bool:
    """Whether the process ends within some seconds."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_process_answers_many_requests_and_keeps_what_it_has_loaded(worker: Write) -> None:
    body = "seen.append(request.decode()); return {'seen': seen, 'pid': os.getpid()}"
    with LimitedProcess(worker(body), LIMITS) as process:
        first = process.ask(b"a")
        second = process.ask("\u00e9".encode() * 100_000)
        assert first["seen"] == ["a"]
        assert second == {"seen": ["a", "\u00e9" * 100_000], "pid": first["pid"]}
        assert process.answers == 2
        assert process.alive
    assert not process.alive
    process.close()
    with pytest.raises(ProcessEndedError):
        process.ask(b"")


@pytest.mark.parametrize(
    "body",
    [
        "os._exit(3)",
        "return 7",
        "return {'a': {1, 2}}",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "raise RuntimeError('secret')",
        "sys.exit(3)",
    ],
)
def test_a_process_that_ends_is_an_error(worker: Write, body: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ProcessEndedError, match="ended with status") as caught:
        run_limited(worker(body), b"", LIMITS)
    assert caught.value.status not in (None, 0)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_worker_is_an_error(tmp_path: Path) -> None:
    for name, text in (("a.py", "def answer("), ("b.py", "x = 1"), ("c.txt", "")):
        (tmp_path / name).write_text(text, "utf-8")
        with pytest.raises(ProcessEndedError, match="ended with status 1"):
            run_limited(tmp_path / name, b"", LIMITS)


def test_what_is_printed_is_no_answer(worker: Write, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_limited(worker("print('no'); os.write(1, b'no'); return {'a': 1}"), b"", LIMITS) == {"a": 1}
    assert capfd.readouterr() == ("", "")


def test_an_answer_that_is_too_long_is_not_read(worker: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_process, "_MAX_ANSWER_BYTES", 10)
    monkeypatch.setattr(limited_process, "_SECONDS_TO_END", 0.1)
    with LimitedProcess(worker("return {'a': 'b' * 100_000}"), LIMITS) as process:
        with pytest.raises(ProcessEndedError):
            process.ask(b"")
        assert not process.alive


@pytest.mark.parametrize("body", ["time.sleep(600)", "while True: pass", "sum(range(10 ** 18))"])
def test_a_process_without_end_is_ended(worker: Write, body: str) -> None:
    started = time.monotonic()
    with LimitedProcess(worker(body), Limits(megabytes=512, seconds=1)) as process:
        with pytest.raises(ProcessEndedError) as caught:
            process.ask(b"")
        # Whichever of the two limits came first.
        assert caught.value.status is None or caught.value.status < 0
        assert not process.alive
    assert time.monotonic() - started < 60


def test_a_process_that_does_not_read_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "asleep.py"
    path.write_text("import time\ntime.sleep(600)", "utf-8")
    with pytest.raises(ProcessEndedError, match="took too long"):
        run_limited(path, bytes(10 << 20), Limits(megabytes=512, seconds=1))


@linux
def test_memory_is_limited_from_before_the_worker_is_loaded(tmp_path: Path, worker: Write) -> None:
    assert run_limited(worker("x = bytearray(50 << 20); return {'n': len(x)}"), b"", LIMITS) == {"n": 50 << 20}
    with pytest.raises(ProcessEndedError, match="status 1"):
        run_limited(worker("x = bytearray(600 << 20); return {}"), b"", LIMITS)
    early = tmp_path / "early.py"
    early.write_text("x = bytearray(600 << 20)\ndef answer(request): return {}", "utf-8")
    with pytest.raises(ProcessEndedError, match="status 1"):
        run_limited(early, b"", LIMITS)


@linux
def test_each_request_has_the_whole_time(worker: Write) -> None:
    body = (
        "import resource\n"
        "    until = time.process_time() + 0.7\n"
        "    while time.process_time() < until: pass\n"
        "    return {'limit': resource.getrlimit(resource.RLIMIT_CPU)[0], 'used': time.process_time()}"
    )
    with LimitedProcess(worker(body), Limits(megabytes=512, seconds=30)) as process:
        for _ in range(3):
            found = process.ask(b"")
            assert 28 < found["limit"] - found["used"] <= 31
    assert found["used"] > 2


@linux
def test_memory_is_the_own_one_and_not_that_of_the_owner(worker: Write) -> None:
    ballast = b"x" * (300 << 20)
    with LimitedProcess(worker("x = bytes(100 << 20); x = x.replace(b'\\0', b'y'); return {}"), LIMITS) as process:
        process.ask(b"")
        assert 100 <= process.peak_megabytes < 290
    assert len(ballast) == 300 << 20


def test_nothing_of_the_environment_but_paths_is_passed_on(worker: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    found = run_limited(worker("return {'names': sorted(os.environ), 'path': sys.path}"), b"", LIMITS)
    assert "SECRET_TOKEN" not in found["names"]
    assert {"PYTHONPATH", "OMP_NUM_THREADS"} <= set(found["names"])
    assert set(filter(None, sys.path)) <= set(found["path"])


def test_an_interrupt_ends_the_process_and_is_not_lost(worker: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with LimitedProcess(worker("return {}"), LIMITS) as process:
        monkeypatch.setattr(process, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            process.ask(b"")
        assert not process.alive


@pytest.mark.skipif(os.name != "posix", reason="signals of a terminal are those of POSIX")
def test_ctrl_c_is_for_the_owner(worker: Write) -> None:
    with LimitedProcess(worker("return {'pid': os.getpid()}"), LIMITS) as process:
        pid = process.ask(b"")["pid"]
        os.kill(pid, 2)
        assert process.ask(b"") == {"pid": pid}


def test_a_process_that_was_forgotten_ends(worker: Write) -> None:
    process = LimitedProcess(worker("return {'pid': os.getpid()}"), LIMITS)
    pid = process.ask(b"")["pid"]
    del process
    assert gone(pid)


OWNER = """
import os, pathlib, sys, threading
from bitnet_onnx.limited_process import LimitedProcess, Limits
process = LimitedProcess(pathlib.Path(sys.argv[1]), Limits(megabytes=512, seconds=20))
print(process.ask(b"")["pid"], flush=True)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("", 0), ("os.kill(os.getpid(), 9)", -9), ("os._exit(0)", 0), ("raise SystemExit(4)", 4)],
)
@pytest.mark.skipif(os.name != "posix", reason="asks for processes by POSIX signals")
def test_a_process_ends_with_its_owner(worker: Write, end: str, status: int) -> None:
    path = worker("return {'pid': os.getpid()}")
    command = [sys.executable, "-P", "-W", "error", "-X", "dev", "-c", OWNER + end, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
    assert gone(int(done.stdout))


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_a_fork_leaves_its_parent_the_process(worker: Write) -> None:
    path = worker("return {'pid': os.getpid()}")
    fork = (
        "child = os.fork()\n"
        "if not child: assert not process.alive; process.close(); del process; sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0 and process.alive\n"
        'print(process.ask(b"")["pid"])'
    )
    command = [sys.executable, "-P", "-W", "error", "-X", "dev", "-c", OWNER + fork, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.split()
    assert first == second


def test_a_system_without_processes_is_one_line(worker: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(BitnetOnnxError, match=r"cannot start .*temporarily unavailable"):
        run_limited(worker("return {}"), b"", LIMITS)


def test_the_inside_serves_until_the_requests_end(worker: Write) -> None:
    answer = _limited_main.load_worker(str(worker("return {'length': len(request)}")))
    requests = b"".join(LENGTH.pack(size) + bytes(size) for size in (0, 5)) + LENGTH.pack(1)[:3]
    answers = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_limited_main, "limit_time", lambda seconds: None)
        _limited_main.serve(answer, io.BytesIO(requests), answers, 1)
    answers.seek(0)
    for expected in (0, 5):
        size, megabytes = ANSWER.unpack(answers.read(ANSWER.size))
        assert json.loads(answers.read(size)) == {"length": expected}
        assert megabytes > 0 or os.name != "posix"
    assert not answers.read()
    with pytest.raises(ImportError, match="no Python file"):
        _limited_main.load_worker("worker.txt")


def test_the_limits_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource", reason="no process limits on this system")
    limits: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (7, 99))
    monkeypatch.setattr(time, "process_time", lambda: 2.5)
    _limited_main.limit_memory(512)
    _limited_main.limit_time(5)
    assert limits == {
        resource.RLIMIT_AS: (512 << 20, 512 << 20),
        resource.RLIMIT_CPU: (8, 99),
        resource.RLIMIT_CORE: (0, 0),
    }
    # As on Windows.
    monkeypatch.setitem(sys.modules, "resource", None)
    limits.clear()
    _limited_main.limit_memory(512)
    _limited_main.limit_time(5)
    assert not limits
