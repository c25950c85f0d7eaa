"""A Python process of its own for work on data from strangers that may end it: it gets no environment but paths."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

#: What a Python process needs of its surroundings; nothing else of the environment is passed on.
_ENVIRONMENT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")


@dataclass(frozen=True, slots=True)
class Finished:
    """How the process ended; a status below zero is the signal that ended it."""

    status: int
    output: bytes
    errors: bytes


def run_limited(script: Path, request: bytes, *, seconds: int) -> Finished | None:
    """Run a script with `request` as its standard input.

    Args:
        script: limits its own memory before it looks at the request.
        request: standard input.
        seconds: until it is killed.

    Returns:
        How it ended, or None where it took too long.
    """
    import subprocess  # only those who need it pay for it

    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # The script must find the libraries of this process, wherever those are.
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(script)],
            input=request,
            capture_output=True,
            timeout=seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return Finished(done.returncode, done.stdout, done.stderr)
