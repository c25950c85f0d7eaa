"""A load test for people: a table on a console."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from bitnet_onnx.benchmarks.results import Report


def show_load(report: Report, console: Console) -> None:
    """Print what came of every kind of request, and the facts around them."""
    facts: Any = report.facts
    table = Table(box=None, pad_edge=False)
    table.add_column("request", overflow="fold")
    for name in ("count", "failed", "p50", "p95", "p99", "first token p50", "p95"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, row in facts["load"]["kinds"].items():
        times, first = row["seconds"], row["first_token_s"] or {}
        table.add_row(
            kind,
            str(row["requests"]),
            str(row["failures"]),
            *(_seconds(times[name]) for name in ("p50", "p95", "p99")),
            *(_seconds(first[name]) if first else "" for name in ("p50", "p95")),
        )
    console.print(table)
    for message, count in facts["load"]["failure_messages"].items():
        console.print(f"failed {count} times: {message}")
    rates = facts.get("throughput")
    if rates is not None:
        console.print(
            f"tokens/s: {rates['generated_tokens_per_s']:.0f} generated, {rates['read_tokens_per_s']:.0f} read, "
            f"{rates['cached_tokens_per_s']:.0f} from the prompt cache"
        )
    memory = facts.get("memory")
    if memory is not None:
        parts = {name: f"{memory[f'{name}_bytes'] / 1e6:.1f} MB" for name in _MEMORY}
        console.print("anonymous memory: " + ", ".join(f"{_MEMORY[name]} {value}" for name, value in parts.items()))
        if not memory["long_enough"]:
            console.print("the load was too short to fill the caches: growth is theirs")
    for label, name in (("/health at rest", "health_at_rest_s"), ("/health under load", "health_s")):
        if (health := facts.get(name)) is not None:
            console.print(f"{label}: " + ", ".join(f"{share} {_seconds(value)}" for share, value in health.items()))
    for note in report.notes:
        console.print(note, soft_wrap=True)


_MEMORY = {
    "before": "before",
    "after_warm_up": "after the warm-up",
    "at_the_end": "at the end",
    "growth": "growth",
    "growth_of_peaks": "growth of the peaks",
    "growth_outside_the_pool": "growth outside the pool",
    "peak": "peak",
    "at_rest": "at rest",
}


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
