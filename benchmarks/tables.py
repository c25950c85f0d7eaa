"""A report for people: a table on a console, and a plot."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bitnet_onnx.benchmarks.results import OURS, Comparison, Report
from bitnet_onnx.errors import InputError

_COLORS = ("#4878a8", "#e49444", "#6a9f58", "#a87ca0", "#d1615d")
_EXTENSIONS = (".png", ".svg", ".pdf")


def show(report: Report, console: Console) -> None:
    """Print every comparison, one line for each candidate, ours first."""
    table = Table(box=None, pad_edge=False)
    table.add_column("case", overflow="fold")
    table.add_column("threads", justify="right")
    table.add_column("candidate", overflow="fold")
    for name in ("median", "range", "rate", "time / ours", "of limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for comparison in report.comparisons:
        for index, row in enumerate(_rows(comparison)):
            head = (comparison.case, str(comparison.threads)) if index == 0 else ("", "")
            table.add_row(*head, *row)
    console.print(table)
    for line in (*_facts(report), *report.notes):
        console.print(line, soft_wrap=True)


def _rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    share = comparison.share_of_limit
    for name, samples in comparison.candidates.items():
        yield (
            name,
            _duration(samples.median),
            f"{_duration(min(samples.seconds))} - {_duration(max(samples.seconds))}",
            _rate(comparison, samples.median),
            f"{comparison.ratio(name):.2f}x",
            f"{100 * share:.0f} %" if share is not None and name == OURS else "",
        )


def _rate(comparison: Comparison, seconds: float) -> str:
    if comparison.tokens:
        return f"{comparison.tokens / seconds:.1f} tokens/s"
    if comparison.multiply_adds:
        return f"{comparison.multiply_adds / seconds / 1e9:.1f} GMAC/s"
    return ""


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def _facts(report: Report) -> Iterator[str]:
    """The figures that are no times, one line each."""
    rooflines: Any = report.facts.get("roofline", ())
    for limit in rooflines:
        products = limit["multiply_adds_per_s"]
        known = "unknown" if products is None else f"{products / 1e9:.0f} GMAC/s"
        yield (
            f"limits of the machine, {limit['threads']} threads: reads {limit['read_bytes_per_s'] / 1e9:.1f} GB/s, "
            f"8-bit products {known}"
        )
    package: Any = report.facts.get("package")
    if package is not None:
        yield f"package: {package['bytes'] / 1e6:.1f} MB"
    memory: Any = report.facts.get("memory", ())
    for entry in memory:
        parts = [
            f"{text} {entry[name] / 1e6:.0f} MB"
            for name, text in (
                ("first_token_peak_bytes", "peak at the first token"),
                ("peak_bytes", "at the end"),
                ("anonymous_bytes", "then anonymous"),
            )
            if entry[name] is not None
        ]
        yield f"memory of {entry['candidate']}, {entry['threads']} threads: {', '.join(parts) or 'unknown'}"


def check_plot(path: Path) -> None:
    """Find out before a long measurement whether its plot can be drawn.

    Raises:
        InputError: matplotlib is not installed, or the file's name ends in no known format.
    """
    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib, which is not installed: pip install 'bitnet-onnx[bench]'")
    if path.suffix not in _EXTENSIONS:
        raise InputError(f"{path}: plots are written as {', '.join(_EXTENSIONS)}")


def plot(report: Report, path: Path) -> None:
    """Draw for every case how many times as long as ours each peer takes.

    Raises:
        InputError: as `check_plot`, or the file cannot be written.
    """
    check_plot(path)
    # Optional, slow to import, and not to look for a display.
    from matplotlib.figure import Figure

    cases = [c for c in report.comparisons if len(c.candidates) > 1]
    peers = list(dict.fromkeys(name for c in cases for name in c.candidates if name != OURS))
    figure = Figure(figsize=(9, 1.5 + 0.28 * sum(len(c.candidates) for c in cases)), layout="constrained")
    axes = figure.subplots()
    position, ticks = 0.0, []
    for comparison in cases:
        names = [name for name in comparison.candidates if name != OURS]
        ticks.append((position + (len(names) - 1) / 2, f"{comparison.case}, {comparison.threads} threads"))
        for name in names:
            color = _COLORS[peers.index(name) % len(_COLORS)]
            ratio = comparison.ratio(name)
            bar = axes.barh(position, ratio - 1, left=1, color=color)
            axes.bar_label(bar, [f"{ratio:.2f}"], padding=3)
            position += 1
        position += 0.7
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([where for where, _ in ticks], [text for _, text in ticks])
    axes.invert_yaxis()
    axes.set_xlabel("time / time of bitnet (right of the line: bitnet is faster)")
    for index, name in enumerate(peers):
        axes.barh(0, 0, left=1, color=_COLORS[index % len(_COLORS)], label=name)
    figure.legend(loc="outside upper center", ncols=3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
