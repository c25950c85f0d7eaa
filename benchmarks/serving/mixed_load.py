"""Does a server stay whole and small under everything that clients do, for minutes?

    python -P -m bitnet_onnx.benchmarks.serving.mixed_load --package PACKAGE --minutes 10 --out a.json --plot a.png

`bitnet-onnx serve` runs as a process of its own, locust (extra `bench`) as another. Users ask for chats and texts,
short and long, streamed and whole, bound to a schema or several at once; some leave in the middle, some ask for what
cannot be. Every answer is checked, and what the server holds is sampled each second. Status 1: a request failed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console

from bitnet_onnx.benchmarks.results import Report
from bitnet_onnx.benchmarks.serving._load import Record, check_locust, percentiles, run_load, summary
from bitnet_onnx.benchmarks.serving._plot import plot_load
from bitnet_onnx.benchmarks.serving._server import Sample, Sampler, ServerProcess
from bitnet_onnx.benchmarks.serving._show import show_load
from bitnet_onnx.benchmarks.tables import check_plot
from bitnet_onnx.errors import BitnetOnnxError

#: As a share of the time, and at most.
_WARM_UP, _MOST_WARM_UP_S = 0.2, 120.0
_WINDOW, _MOST_WINDOW_S = 0.2, 60.0
#: The prompt cache counts as full when it holds as much of the most that it comes to hold.
_FULL = 0.95
#: What is kept of the course of a long load.
_POINTS = 120
#: Percentiles are those of so many seconds at the least.
_LEAST_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class MixedLoad:
    """What to measure.

    Attributes:
        minutes: of load.
        users: each with one request at a time.
        max_batch: slots of the server.
        idle_s: seconds of rest after the load, after which memory should have been given back.
    """

    minutes: float = 10.0
    users: int = 24
    max_batch: int = 16
    idle_s: float = 15.0


def run(package: Path, settings: MixedLoad, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Load a server and look at it.

    Raises:
        InputError: locust is not installed.
        BitnetOnnxError: the server or locust failed.
    """
    check_locust()
    with ServerProcess(package, "--max-batch", str(settings.max_batch)) as server:
        progress(f"{settings.users} users for {settings.minutes:g} minutes at {server.address}")
        with Sampler(server) as sampler:
            records = run_load(server.address, "MixedUser", users=settings.users, seconds=60 * settings.minutes)
            progress("at rest")
            time.sleep(settings.idle_s)
        if not server.alive:
            raise BitnetOnnxError(f"the server ended under the load: {server.errors()[-300:] or 'no message'}")
        status, errors = server.end(), server.errors()
    samples = sampler.samples
    begun = min(record.at for record in records)
    loaded = [sample for sample in samples if begun <= sample.at <= begun + 60 * settings.minutes]
    facts: dict[str, Any] = {
        "load": summary(records),
        "memory": _memory(loaded, begun, samples[-1]),
        "throughput": _throughput(loaded),
        "first_token_s": percentiles(r.first_token_s for r in records if r.first_token_s is not None),
        "server": {"exit_status": status, "stderr": errors[-2000:]},
        "timeline": [_point(sample, begun) for sample in samples[:: max(len(samples) // _POINTS, 1)]],
        "first_tokens": _first_tokens(records, begun, max(60 * settings.minutes / _POINTS, _LEAST_WINDOW_S)),
    }
    notes = (
        "Speeds are those of a machine that the load itself shares with the server.",
        "Memory growth is the median of anonymous memory at the end of the load less that after the warm-up, "
        "which lasts until the prompt cache is full.",
        "A request has failed when its status, form or end is not what it should be; bad requests should be refused.",
    )
    return Report("serving_mixed_load", {"package": package.name, **asdict(settings)}, (), facts, notes)


def _memory(samples: Sequence[Sample], begun: float, last: Sample) -> dict[str, float | bool]:
    """Anonymous memory after the warm-up and at the end of the load: medians of a window each, and their peaks."""
    seconds = samples[-1].at - begun
    warm_up = max(min(_WARM_UP * seconds, _MOST_WARM_UP_S), _filled(samples) - begun)
    window = min(_WINDOW * seconds, _MOST_WINDOW_S)
    begin = [s for s in samples if warm_up <= s.at - begun <= warm_up + window] or [samples[-1]]
    end = [s for s in samples if s.at - begun >= seconds - window]
    after, at_the_end = (median(s.anonymous_bytes for s in part) for part in (begin, end))
    return {
        "warm_up_s": warm_up,
        "window_s": window,
        "long_enough": warm_up + window <= seconds - window,
        "before_bytes": samples[0].anonymous_bytes,
        "after_warm_up_bytes": after,
        "at_the_end_bytes": at_the_end,
        "growth_bytes": at_the_end - after,
        "growth_of_peaks_bytes": max(s.anonymous_bytes for s in end) - max(s.anonymous_bytes for s in begin),
        "growth_outside_the_pool_bytes": _outside(end) - _outside(begin),
        "peak_bytes": max(sample.anonymous_bytes for sample in samples),
        "peak_resident_bytes": max(sample.resident_bytes for sample in samples),
        "at_rest_bytes": last.anonymous_bytes,
    }


def _filled(samples: Sequence[Sample]) -> float:
    """When the prompt cache was full first."""
    sizes = [sample.metrics.get("prompt_cache_bytes", 0.0) for sample in samples]
    return next(sample.at for sample, size in zip(samples, sizes, strict=True) if size >= _FULL * max(sizes))


def _outside(samples: Sequence[Sample]) -> float:
    """Anonymous memory that the pool knows nothing of: Python's, and what allocators keep."""
    return median(s.anonymous_bytes - s.metrics.get("memory_used_bytes", 0.0) for s in samples)


def _throughput(samples: Sequence[Sample]) -> dict[str, float]:
    """Tokens a second over the whole load."""
    told = [sample for sample in samples if sample.metrics]
    seconds = told[-1].at - told[0].at
    names = {
        "generated_tokens_per_s": "generated_tokens_total",
        "read_tokens_per_s": "prefilled_tokens_total",
        "cached_tokens_per_s": "cached_tokens_total",
    }
    return {
        name: (told[-1].metrics[metric] - told[0].metrics[metric]) / seconds if seconds else 0.0
        for name, metric in names.items()
    }


def _first_tokens(records: Sequence[Record], begun: float, window: float) -> list[dict[str, float]]:
    """Percentiles of the times to first token of the streams that began in each window, by the window's end."""
    windows: dict[int, list[float]] = {}
    for record in records:
        if record.first_token_s is not None:
            windows.setdefault(int((record.at - begun) // window), []).append(record.first_token_s)
    return [
        {"s": (number + 1) * window, "count": len(values), **(percentiles(values) or {})}
        for number, values in sorted(windows.items())
    ]


def _point(sample: Sample, begun: float) -> dict[str, float]:
    names = (
        *("queue_length", "running", "generated_tokens_total", "prefilled_tokens_total"),
        *("memory_used_bytes", "prompt_cache_bytes"),
    )
    return {
        "s": round(sample.at - begun, 2),
        "anonymous_bytes": sample.anonymous_bytes,
        "resident_bytes": sample.resident_bytes,
        **{name: sample.metrics[name] for name in names if name in sample.metrics},
    }


@click.command()
@click.option("--package", required=True, type=click.Path(path_type=Path), help="The package to serve.")
@click.option("--minutes", type=click.FloatRange(0.05, 24 * 60), default=10.0, show_default=True)
@click.option("--users", type=click.IntRange(1, 1000), default=24, show_default=True)
@click.option("--max-batch", type=click.IntRange(1, 1024), default=16, show_default=True, help="Slots of the server.")
@click.option(
    "--idle", type=click.FloatRange(0, 3600), default=15.0, show_default=True, help="Seconds of rest at last."
)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG, SVG or PDF file to draw.")
def main(
    package: Path, minutes: float, users: int, max_batch: int, idle: float, out: Path | None, plot: Path | None
) -> None:
    """Load a server of its own over HTTP, and look for failures and for memory that grows."""
    if plot is not None:
        check_plot(plot)
    width = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    report = run(package, MixedLoad(minutes, users, max_batch, idle), console.print)
    show_load(report, console)
    if out is not None:
        report.write(out)
    if plot is not None:
        plot_load(report.facts, plot)
    facts: Any = report.facts
    sys.exit(1 if facts["load"]["failures"] else 0)


if __name__ == "__main__":
    main()
