"""Limited processes that are kept for the next request."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet_onnx.limited_process import LimitedProcess, Limits


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a pool keeps.

    Attributes:
        processes: the most at a time; who finds all of them at work waits.
        answers: after which a process is replaced.
        megabytes: a process that has held more is replaced, where the system says so.
    """

    processes: int
    answers: int
    megabytes: int


class ProcessPool:
    """Processes of one worker, started when they are needed; for any number of threads.

    Args:
        worker: as of `LimitedProcess`; what it remembers from one request must not show in another.
        limits: of each process and request.
        keeping: how many are kept, and how long.
    """

    def __init__(self, worker: Path, limits: Limits, keeping: Keeping) -> None:
        self._worker = worker
        self._limits = limits
        self._keeping = keeping
        self._free = threading.BoundedSemaphore(keeping.processes)
        self._lock = threading.Lock()
        self._idle: list[LimitedProcess] = []
        self._closed = False

    def ask(self, request: bytes) -> dict[str, Any]:
        """The answer of one of the processes.

        Raises:
            ProcessEndedError: it took too long, or ended; the next request gets another process.
        """
        with self._free:
            process = self._idle_process() or LimitedProcess(self._worker, self._limits)
            answer = process.ask(request)
            self._give_back(process)
            return answer

    def _idle_process(self) -> LimitedProcess | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                # The one used last: the others may rest, and their pages with them.
                process = self._idle.pop()
            if process.alive:
                return process
            process.close()

    def _give_back(self, process: LimitedProcess) -> None:
        worn = process.answers >= self._keeping.answers or process.peak_megabytes > self._keeping.megabytes
        with self._lock:
            if not worn and not self._closed:
                self._idle.append(process)
                return
        process.close()

    def close(self) -> None:
        """Ends the processes, those at work with their answer; what is asked later gets one for itself."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()
