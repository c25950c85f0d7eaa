"""Are many more clients than slots all answered or told to come again, and does `/health` answer meanwhile?

    python -P -m bitnet_onnx.benchmarks.serving.connections --package PACKAGE --out connections.json

As many users of locust (extra `bench`) as connections ask at once, again and again; `/health` is asked over one more
connection. Status 1: a request was neither answered nor refused with 429, or `/health` was slow.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bitnet_onnx.benchmarks.results import Report
from bitnet_onnx.benchmarks.serving._load import check_locust, percentiles, run_load, summary
from bitnet_onnx.benchmarks.serving._server import HealthProbe, Sampler, ServerProcess
from bitnet_onnx.benchmarks.serving._show import show_load

#: The 99th percentile of `/health`.
LIMIT_S = 0.1
#: `/health` of the server at rest is asked for so long before: what the machine itself is good for.
_IDLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Connections:
    """What to measure.

    Attributes:
        users: connections, each with one request at a time.
        seconds: of load.
        max_batch: slots of the server.
        max_queue: requests that may wait.
    """

    users: int = 256
    seconds: float = 60.0
    max_batch: int = 8
    max_queue: int = 64


def run(package: Path, settings: Connections, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Load a server with connections and ask for its health.

    Raises:
        InputError: locust is not installed.
        BitnetOnnxError: the server or locust failed.
    """
    check_locust()
    options = ("--max-batch", str(settings.max_batch), "--max-queue", str(settings.max_queue))
    with ServerProcess(package, *options) as server:
        progress("at rest")
        with HealthProbe(server) as idle:
            time.sleep(_IDLE_S)
        progress(f"{settings.users} connections for {settings.seconds:g} seconds at {server.address}")
        with Sampler(server) as sampler, HealthProbe(server) as probe:
            records = run_load(server.address, "CrowdUser", users=settings.users, seconds=settings.seconds)
    health: Any = percentiles(probe.seconds)
    facts: dict[str, Any] = {
        "load": summary(records),
        "health_s": health,
        "health_at_rest_s": percentiles(idle.seconds),
        "health_checks": len(probe.seconds),
        "health_failures": probe.failures[:20],
        "most_waiting": max(sample.metrics.get("queue_length", 0) for sample in sampler.samples),
        "held": not probe.failures and health["p99"] < LIMIT_S and all(record.failure is None for record in records),
    }
    notes = ("Server, load and probe share the machine; a refusal with 429 is a right answer here.",)
    return Report("serving_connections", {"package": package.name, **asdict(settings)}, (), facts, notes)


@click.command()
@click.option("--package", required=True, type=click.Path(path_type=Path), help="The package to serve.")
@click.option("--users", type=click.IntRange(1, 10_000), default=256, show_default=True, help="Connections.")
@click.option("--seconds", type=click.FloatRange(1, 86400), default=60.0, show_default=True)
@click.option("--max-batch", type=click.IntRange(1, 1024), default=8, show_default=True, help="Slots of the server.")
@click.option("--max-queue", type=click.IntRange(1, 1 << 20), default=64, show_default=True, help="Most that wait.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(package: Path, users: int, seconds: float, max_batch: int, max_queue: int, out: Path | None) -> None:
    """Load a server of its own with more connections than it has slots."""
    width = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    report = run(package, Connections(users, seconds, max_batch, max_queue), console.print)
    show_load(report, console)
    if out is not None:
        report.write(out)
    sys.exit(0 if report.facts["held"] else 1)


if __name__ == "__main__":
    main()
