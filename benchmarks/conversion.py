"""How long does a conversion take, and how much memory?

    python -P benchmarks/conversion.py --out benchmarks/results/conversion-bitnet-2b4t.json

A checkpoint of bfloat16 masters in the sizes of a known model is written to a temporary directory, converted through
the command line in a process of its own, and deleted. What the process reads was written a moment before and may lie
in the system's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import click

from bitnet_onnx.benchmarks._synthetic_checkpoint import write_random_checkpoint
from bitnet_onnx.benchmarks.results import Report
from bitnet_onnx.benchmarks.shape import SHAPES
from bitnet_onnx.errors import BitnetOnnxError

_POLL_S: Final = 0.01
_ERROR_LIMIT: Final = 300


@dataclass(frozen=True, slots=True)
class Run:
    """One conversion.

    Attributes:
        seconds: from the start of the process to its end.
        cpu_seconds: of all its threads, in the program and in the system.
        peak_bytes: most memory resident at once; None where the system does not tell.
        anonymous_bytes: most of it that no file stands behind, as seen every hundredth of a second; None as before.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int | None
    anonymous_bytes: int | None


def measure(name: str, folder: Path | None, rounds: int) -> Report:
    """Make the checkpoint, convert it `rounds` times, and delete everything.

    Args:
        name: a key of `SHAPES`.
        folder: where there is room for both; None for the system's temporary directory.
        rounds: conversions; the median time is reported.

    Raises:
        BitnetOnnxError: a conversion failed, with its last words.
    """
    with tempfile.TemporaryDirectory(dir=folder) as made:
        source, package = Path(made, "source"), Path(made, "package")
        source_bytes = write_random_checkpoint(SHAPES[name].spec, source)
        runs = []
        for _ in range(rounds):
            shutil.rmtree(package, ignore_errors=True)
            runs.append(convert(source, package))
        package_bytes = sum(file.stat().st_size for file in package.iterdir())
    seconds = median(run.seconds for run in runs)
    return Report(
        benchmark="conversion",
        settings={"shape": name, "rounds": rounds},
        comparisons=(),
        facts={
            "source_bytes": source_bytes,
            "package_bytes": package_bytes,
            "seconds": {"median": seconds, "all": [run.seconds for run in runs]},
            "cpu_seconds": median(run.cpu_seconds for run in runs),
            "source_megabytes_per_s": source_bytes / seconds / 1e6,
            "peak_bytes": _most([run.peak_bytes for run in runs]),
            "anonymous_bytes": _most([run.anonymous_bytes for run in runs]),
        },
        notes=(
            f"The weights are random bfloat16 masters, in the sizes of {name}; blocks become ternary, the head int8.",
            "The checkpoint was written before the first run: reads come from the system's cache as far as it fits.",
        ),
    )


def convert(source: Path, package: Path, options: Sequence[str] = ()) -> Run:
    """Convert in a process of its own and watch it.

    Args:
        source: the checkpoint.
        package: to write.
        options: of the command line.

    Raises:
        BitnetOnnxError: it failed, with its last words.
    """
    command = [sys.executable, "-P", "-m", "bitnet_onnx", "convert", str(source), str(package), *options]
    with tempfile.TemporaryFile() as errors:
        before, started = os.times(), time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        peak = anonymous = None
        try:
            while child.poll() is None:
                memory = _memory(child.pid)
                peak, anonymous = _most([peak, memory.get("VmHWM")]), _most([anonymous, memory.get("RssAnon")])
                time.sleep(_POLL_S)
        finally:
            child.kill()
            child.wait()
        seconds, after = time.perf_counter() - started, os.times()
        if child.returncode:
            errors.seek(0)
            lines = errors.read().decode("utf-8", errors="replace").strip().splitlines()
            last = lines[-1][:_ERROR_LIMIT] if lines else "no message"
            raise BitnetOnnxError(f"the conversion ended with status {child.returncode}: {last}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, cpu, peak, anonymous)


def _memory(process: int) -> dict[str, int]:
    """Fields of a process's status in bytes; empty where there are none, or it has just ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def _most(values: list[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="bitnet-2b4t", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="Where to write; the temporary directory.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(shape: str, folder: Path | None, rounds: int, out: Path) -> None:
    """Measure a conversion."""
    report = measure(shape, folder, rounds)
    report.write(out)
    facts = report.facts
    click.echo(f"{facts['seconds']} s, {facts['source_megabytes_per_s']:.0f} MB/s, peak {facts['peak_bytes']} bytes")


if __name__ == "__main__":
    main()
