"""A load test over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_onnx.benchmarks.tables import check_plot
from bitnet_onnx.errors import InputError

#: Points of a line: more would be noise.
_POINTS = 60


def plot_load(facts: Mapping[str, Any], path: Path) -> None:
    """Draw throughput, time to first token, queue and memory.

    Args:
        facts: of the report.
        path: PNG, SVG or PDF.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    check_plot(path)
    # Optional, slow to import, and not to look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), layout="constrained")
    speed, first, queue, memory = figure.subplots(4, sharex=True)
    timeline = facts["timeline"]
    seconds = [point["s"] for point in timeline]
    step = max(seconds[-1] / _POINTS, 1.0)
    for name, label, color in (
        ("generated_tokens_total", "generated", "#4878a8"),
        ("prefilled_tokens_total", "read", "#e49444"),
    ):
        speed.plot(*_rates(timeline, name, step), label=label, color=color)
    speed.set_ylabel("tokens/s")
    windows = facts["first_tokens"]
    for name, color in (("p50", "#4878a8"), ("p95", "#e49444")):
        first.plot([point["s"] for point in windows], [point[name] for point in windows], label=name, color=color)
    first.set_ylabel("time to first token, s")
    first.set_ylim(bottom=0)
    queue.plot(seconds, [point.get("running", 0) for point in timeline], label="in slots", color="#4878a8")
    queue.plot(seconds, [point.get("queue_length", 0) for point in timeline], label="waiting", color="#e49444")
    queue.set_ylabel("requests")
    for name, label, color in (
        ("anonymous_bytes", "anonymous", "#4878a8"),
        ("resident_bytes", "resident", "#6a9f58"),
        ("memory_used_bytes", "accounted by the pool", "#e49444"),
    ):
        memory.plot(seconds, [point.get(name, np.nan) / 1e6 for point in timeline], label=label, color=color)
    memory.set_ylabel("memory, MB")
    memory.set_ylim(bottom=0)
    memory.set_xlabel("seconds")
    for axes in (speed, first, queue, memory):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", ncols=3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _rates(timeline: Sequence[Mapping[str, float]], name: str, step: float) -> tuple[list[float], list[float]]:
    """Moments, and how fast a counter rose before each."""
    chosen: list[Mapping[str, float]] = []
    for point in timeline:
        if name in point and (not chosen or point["s"] - chosen[-1]["s"] >= step):
            chosen.append(point)
    pairs = list(pairwise(chosen))
    return [b["s"] for _, b in pairs], [(b[name] - a[name]) / (b["s"] - a["s"]) for a, b in pairs]
