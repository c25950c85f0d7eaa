"""The ordering as a drawing: validation curves of all runs, and what ternary conversion without training gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bitnet_onnx.benchmarks.tables import check_plot
from bitnet_onnx.training.monitoring import LOG_NAME, History

_COLORS: Final = {"base": "#9a9a9a", "float": "#4878a8", "qat": "#e49444", "distilled": "#5a9a5a"}


def draw(runs: Path, steps: int, scores: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw the runs of all seeds: curves of their own validation windows, and dots for the packages.

    Dots and the dashed line are of all tokens that are scored, curves of fewer.

    Args:
        runs: folder of the runs.
        steps: of each half.
        scores: perplexity by seed and model.
        path: PNG, SVG or PDF.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    check_plot(path)
    # Optional, slow to import, and not to look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, seed in enumerate(scores):
        for name, color in _COLORS.items():
            history = History.read(runs / f"seed-{seed}" / name / LOG_NAME)
            offset = 0 if name == "base" else steps
            points = [(offset + step, math.exp(loss)) for step, loss in history.validation]
            label = name if number == 0 else None
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.5, alpha=0.8, label=label)
            if name in scores[seed]:
                axes.plot(2.06 * steps, scores[seed][name], color=color, marker="o", markersize=4, linestyle="none")
        best = min(value for name, value in scores[seed].items() if name.startswith("untrained"))
        label = "best ternary without training" if number == 0 else None
        axes.axhline(best, color="#b04a4a", linestyle="--", linewidth=1, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel("perplexity of the held-out tenth")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)
