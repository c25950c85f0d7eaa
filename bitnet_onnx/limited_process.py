"""A Python process of its own for work on data from strangers that may end it: it gets no environment but paths."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

from bitnet_onnx._limited_main import ANSWER, LENGTH
from bitnet_onnx.errors import BitnetOnnxError

if TYPE_CHECKING:
    import subprocess

logger = logging.getLogger(__name__)

_MAIN = Path(__file__).with_name("_limited_main.py")
#: What a Python process needs of its surroundings; nothing else of the environment is passed on.
_ENVIRONMENT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
#: One thread is what the work needs, and each more of these libraries reserves address space.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_MAX_ANSWER_BYTES = 256 << 20
_SECONDS_TO_END = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a process.

    Attributes:
        megabytes: of address space, where the system enforces that, as Linux does.
        seconds: of each request: from the question to the answer, and of processor time.
    """

    megabytes: int
    seconds: int


class ProcessEndedError(BitnetOnnxError):
    """A limited process ended instead of answering.

    Attributes:
        status: how; below zero the signal that ended it. None: it took too long and was killed.
    """

    def __init__(self, worker: Path, status: int | None) -> None:
        super().__init__(f"{worker.name} {'took too long' if status is None else f'ended with status {status}'}")
        self.status = status


class LimitedProcess:
    """A running worker; for one thread at a time. It ends with its owner, whatever ends that.

    Args:
        worker: a file with a function `answer(request: bytes) -> dict[str, object]` of JSON values; it imports little.
        limits: of the process and of each request.
    """

    def __init__(self, worker: Path, limits: Limits) -> None:
        import subprocess  # only those who need it pay for it

        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= dict.fromkeys(_ONE_THREAD, "1")
        # The worker must find the libraries of this process, wherever those are.
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        self._worker = worker
        self._seconds = limits.seconds
        self._owner = os.getpid()
        #: Answers so far, and the most memory that the process held, by its own account.
        self.answers = 0
        self.peak_megabytes = 0
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_MAIN), str(worker), str(limits.megabytes), str(limits.seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A library that dies may write without end, and nobody would read it.
                stderr=None if logger.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL,
                env=environment,
            )
        except OSError as error:
            raise BitnetOnnxError(
                f"cannot start {sys.executable} for {worker.name}: {error.strerror}; free memory or processes"
            ) from None
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._answers = cast("IO[bytes]", self._process.stdout)
        self._end = weakref.finalize(self, _end, self._process, self._owner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether it can be asked: it has not ended, and was not inherited by a fork."""
        return self._end.alive and self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: bytes) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            ProcessEndedError: it took too long, or ended. It is closed then, as after any other exception.
        """
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        # Not every system can wait for a pipe with a limit.
        timer = threading.Timer(self._seconds, end)
        timer.daemon = True
        timer.start()
        status = None
        try:
            answer = self._exchange(request)
            if answer is None:
                status = self._status()
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
            timer.join()
        if answer is None or late.is_set():
            self.close()
        if answer is None:
            raise ProcessEndedError(self._worker, None if late.is_set() else status)
        self.answers += 1
        return answer

    def _exchange(self, request: bytes) -> dict[str, Any] | None:
        """The answer; None where none comes."""
        try:
            self._requests.write(LENGTH.pack(len(request)) + request)
            self._requests.flush()
            head = self._answers.read(ANSWER.size)
            if len(head) < ANSWER.size:
                return None
            size, self.peak_megabytes = ANSWER.unpack(head)
            if size > _MAX_ANSWER_BYTES:
                return None
            answer = json.loads(self._answers.read(size))
        except (OSError, ValueError, RecursionError):
            return None
        return answer if isinstance(answer, dict) else None

    def _status(self) -> int:
        """How it ended, which it is about to; else it is killed."""
        import subprocess

        try:
            return self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        """Ends it; twice is fine."""
        self._end()


def run_limited(worker: Path, request: bytes, limits: Limits) -> dict[str, Any]:
    """The answer of a worker to one request, in a process of its own; what `LimitedProcess` is for many.

    Raises:
        ProcessEndedError: it took too long, or ended.
    """
    with LimitedProcess(worker, limits) as process:
        return process.ask(request)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:
        process.kill()
        process.wait()
    else:
        process.returncode = 0  # of a fork's parent: not to be waited for here
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was left to write has no reader
                pipe.close()
