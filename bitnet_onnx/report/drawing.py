"""Drawings as SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from bitnet_onnx.errors import UnsupportedError

#: What matplotlib draws with, and the variable of the page that takes its place.
_INK: Final = "#010203"
_GRID: Final = "#040506"
SERIES: Final = ("#0a0101", "#0a0102", "#0a0103", "#0a0104", "#0a0105", "#0a0106", "#0a0107")
_VARIABLES: Final = {
    _INK: "var(--ink)",
    _GRID: "var(--grid)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)},
}
_WIDTH: Final = 7.6
_HEIGHT: Final = 2.9


@contextmanager
def figure(x: str, y: str) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Axes to draw on, and a function that gives the SVG afterwards."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("a report needs matplotlib: pip install 'bitnet-onnx[report]'") from None
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "bitnet-onnx",
        "font.family": "sans-serif",
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK),
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=_GRID, linewidth=0.6)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        drawn: list[str] = []
        yield axes, lambda: drawn[0]
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": None})
        drawn.append(_adapted(output.getvalue()))


def plot(axes: Any, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """A line for each series, points by name, and their legend."""
    for index, (name, points) in enumerate(series.items()):
        colour = SERIES[index % len(SERIES)]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, marker=".", markersize=4, label=name)
    legend(axes)


def logarithmic(axes: Any) -> None:
    """Both axes, with numbers as they are read."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(axis="y", which="minor", color=_GRID, linewidth=0.4)


def legend(axes: Any) -> None:
    """Above the axes, in one row."""
    axes.legend(frameon=False, fontsize=8, ncols=7, loc="lower left", bbox_to_anchor=(0, 1.0), handlelength=1.2)


def _adapted(svg: str) -> str:
    """The drawing alone, with the page's colours and fonts, as wide as its place."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'font: ([0-9.]+px) [^;"]*', r"font: \1 inherit", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    return re.sub(r'<svg ([^>]*?)width="[^"]*" ([^>]*?)height="[^"]*"', r"<svg \1\2", svg, count=1)
