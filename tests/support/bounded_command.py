"""`bitnet-onnx` as a process of its own, held to what bad input may cost: 10 s, 1 GB, one line, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

try:
    import resource
except ImportError:  # Windows: the limits of time and memory are not enforced there, the outcome is checked
    resource = None  # type: ignore[assignment]

SECONDS = 10
#: Address space: libraries reserve more of it than they use.
ADDRESS_SPACE = 1_500_000_000
#: A machine that is busy with other things takes longer for the same work.
PATIENCE = 120


@dataclass(frozen=True)
class Ended:
    """A process that ended: its output,."""

    status: int
    out: str
    err: str


def run_bounded(*arguments: str | Path, folder: Path) -> Ended:
    """Run a command with limits of processor time and address space, in `folder`, which is left empty by it."""
    return run_bounded_python("-m", "bitnet_onnx", *arguments, folder=folder)


def run_bounded_python(*arguments: str | Path, folder: Path) -> Ended:
    """Run Python with the same limits, for what no command reaches."""
    command = [sys.executable, "-P", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        preexec_fn=None if resource is None else _limit,
        # Lines must not be broken, and a stack trace of a library must not hide.
        env=os.environ | {"COLUMNS": "200", "RUST_BACKTRACE": "1", "NO_COLOR": "1"},
    )
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, out.decode(), err.decode())


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    if sys.platform == "linux":  # macOS refuses a limit below the address space already reserved
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def refused(source: Path, folder: Path) -> str:
    """Convert `source`, which must be refused, and give the one line that says why.

    Args:
        source: a checkpoint.
        folder: an empty directory for the output and as the working directory; it must be empty afterwards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ended = run_bounded("convert", source, folder / "package", folder=folder)
    if ended.status != 2 or ended.out:
        raise AssertionError(f"status {ended.status}, stdout {ended.out[:500]!r}, stderr {ended.err[:3000]!r}")
    lines = ended.err.splitlines()
    if len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > 1000:
        raise AssertionError(f"not one short line: {ended.err[:3000]!r}")
    if left := sorted(path.name for path in folder.iterdir()):
        raise AssertionError(f"left behind: {left}")
    return lines[0]
