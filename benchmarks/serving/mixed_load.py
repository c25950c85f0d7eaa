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

#: As a share of the time, and at most: until caches are full and every slot has held a long text.
_WARM_UP, _MOST_WARM_UP_S = 0.2, 120.0
_WINDOW, _MOST_WINDOW_S = 0.2, 60.0


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run: its report, and what a plot is drawn from."""

    report: Report
    records: tuple[Record, ...]
    samples: tuple[Sample, ...]

    @property
    def failures(self) -> int:
        """Requests that were not answered as they should be."""
        return sum(record.failure is not None for record in self.records)


def run(package: Path, settings: MixedLoad, progress: Callable[[str], None] = lambda _: None) -> Outcome:
    """Load a server and look at it.

    Raises:
        InputError: locust is not installed.
        BitnetOnnxError: the server or locust failed.
    """
    check_locust()
    with ServerProcess(package, "--max-batch", str(settings.max_batch)) as server:
        progress(f"{settings.users} users for {settings.minutes:g} minutes at {server.address}")
        started = time.time()
        with Sampler(server) as sampler:
            records = run_load(server.address, "MixedUser", users=settings.users, seconds=60 * settings.minutes)
            ended = time.time()
            progress("at rest")
            time.sleep(settings.idle_s)
        if not server.alive:
            raise BitnetOnnxError(f"the server ended under the load: {server.errors()[-300:] or 'no message'}")
        status, errors = server.end(), server.errors()
    samples = sampler.samples
    loaded = [sample for sample in samples if started <= sample.at <= started + 60 * settings.minutes]
    facts: dict[str, Any] = {
        "load": summary(records),
        "memory": _memory(loaded, started, samples[-1]),
        "throughput": _throughput(loaded),
        "first_token_s": percentiles(r.first_token_s for r in records if r.first_token_s is not None),
        "server": {"exit_status": status, "stderr": errors[-2000:], "load_ended_after_s": ended - started},
        "timeline": [_point(sample, started) for sample in samples],
    }
    notes = (
        "Speeds are those of a machine that the load itself shares with the server.",
        "Memory growth is the median of anonymous memory at the end of the load less that after the warm-up.",
        "A request has failed when its status, form or end is not what it should be; bad requests should be refused.",
    )
    report = Report("serving_mixed_load", {"package": package.name, **asdict(settings)}, (), facts, notes)
    return Outcome(report, tuple(records), tuple(samples))


def _memory(samples: Sequence[Sample], started: float, last: Sample) -> dict[str, float]:
    """Anonymous memory after the warm-up and at the end of the load: medians of a window each, and their peaks."""
    seconds = samples[-1].at - started
    warm_up = min(_WARM_UP * seconds, _MOST_WARM_UP_S)
    window = min(_WINDOW * seconds, _MOST_WINDOW_S)
    begin = [s.anonymous_bytes for s in samples if warm_up <= s.at - started <= warm_up + window]
    end = [s.anonymous_bytes for s in samples if s.at - started >= seconds - window]
    return {
        "warm_up_s": warm_up,
        "window_s": window,
        "before_bytes": samples[0].anonymous_bytes,
        "after_warm_up_bytes": median(begin),
        "at_the_end_bytes": median(end),
        "growth_bytes": median(end) - median(begin),
        "growth_of_peaks_bytes": max(end) - max(begin),
        "peak_bytes": max(sample.anonymous_bytes for sample in samples),
        "peak_resident_bytes": max(sample.resident_bytes for sample in samples),
        "at_rest_bytes": last.anonymous_bytes,
    }


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


def _point(sample: Sample, started: float) -> dict[str, float]:
    names = ("queue_length", "running", "generated_tokens_total", "prefilled_tokens_total", "memory_used_bytes")
    return {
        "s": round(sample.at - started, 2),
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
    outcome = run(package, MixedLoad(minutes, users, max_batch, idle), console.print)
    show_load(outcome.report, console)
    if out is not None:
        outcome.report.write(out)
    if plot is not None:
        plot_load(outcome.report.facts["timeline"], outcome.records, plot)
    sys.exit(1 if outcome.failures else 0)


if __name__ == "__main__":
    main()
