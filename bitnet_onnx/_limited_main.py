"""The inside of a limited process: limits itself, then answers the requests of `limited_process.py`.

Run as `python _limited_main.py WORKER MEGABYTES SECONDS`. WORKER is a file with a function `answer(request: bytes) ->
dict[str, object]`. A request on standard input is its length (`LENGTH`) and its bytes, an answer on standard output the
length and the peak of memory in megabytes (`ANSWER`) and a JSON object. The process ends with its standard input, so
with its owner.

Imports nothing of bitnet_onnx: the process starts quickly, and holds nothing worth reaching.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import BinaryIO, TypeAlias

LENGTH = struct.Struct("<Q")
ANSWER = struct.Struct("<QQ")

Answer: TypeAlias = Callable[[bytes], dict[str, object]]


def limit_memory(megabytes: int) -> None:
    """Bounds the address space, where the system can; what is above gets no memory."""
    try:
        import resource
    except ImportError:  # Windows: the owner's time limit remains
        return
    # macOS refuses a limit below the address space already reserved.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def limit_time(seconds: int) -> None:
    """Ends the process `seconds` of processor time from now, where the system can, even if its owner is gone."""
    try:
        import resource
    except ImportError:  # Windows: as above
        return
    soonest = math.ceil(time.process_time()) + seconds
    with contextlib.suppress(ValueError, OSError):
        # The signal would write a core file. Its hard limit stays, since that cannot be raised for the next request.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (soonest, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def peak_megabytes() -> int:
    """The most memory that the process has held so far; 0 where the system does not say."""
    # ru_maxrss of Linux begins with what the owner held when it started this process.
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:  # noqa: PTH123  # pathlib takes 5 ms
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) >> 10
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def load_worker(path: str) -> Answer:
    """The function `answer` of a file."""
    spec = importlib.util.spec_from_file_location("worker", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["worker"] = module
    spec.loader.exec_module(module)
    answer: Answer = module.answer
    return answer


def serve(answer: Answer, requests: BinaryIO, answers: BinaryIO, seconds: int) -> None:
    """Answers until there are no more requests; each gets `seconds` of processor time."""
    while len(head := requests.read(LENGTH.size)) == LENGTH.size:
        limit_time(seconds)
        data = json.dumps(answer(requests.read(*LENGTH.unpack(head)))).encode()
        answers.write(ANSWER.pack(len(data), peak_megabytes()) + data)
        answers.flush()


def main() -> None:
    """Does what the module says."""
    path, megabytes, seconds = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, but is the owner's to judge
    # What a library prints is no answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    limit_memory(int(megabytes))
    limit_time(int(seconds))
    serve(load_worker(path), sys.stdin.buffer, answers, int(seconds))


if __name__ == "__main__":
    main()
