"""Charts as SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.policy import HEAD_ROLES
from bitnet_onnx.report.layers import LayerQuality
from bitnet_onnx.report.measurement import Measurement

#: What matplotlib draws with, and the variable of the page that takes its place.
_INK: Final = "#010203"
_GRID: Final = "#040506"
_SERIES: Final = ("#0a0101", "#0a0102", "#0a0103", "#0a0104", "#0a0105", "#0a0106", "#0a0107")
_VARIABLES: Final = {
    _INK: "var(--ink)",
    _GRID: "var(--grid)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES)},
}
_WIDTH: Final = 7.6
_HEIGHT: Final = 2.9


def charts(found: Measurement) -> list[tuple[str, str, str]]:
    """All charts: a title, the SVG, and what is to be seen."""
    made = [
        (
            "Error of each layer's output",
            _outputs(found.layers),
            "Each layer by itself on the inputs of the original model, its activations rounded as the package does.",
        ),
        (
            "Error along the depth",
            _depth(found.depth),
            "Relative error of the hidden states: what all layers up to here did together.",
        ),
        (
            "Precision of each layer's weights",
            _weights(found.layers),
            "Signal to quantization noise in decibels; six more halve the error. Exact layers are left out.",
        ),
    ]
    if found.frontier:
        made.insert(0, ("Size against loss", _frontier(found), _frontier_text()))
    return [(title, svg, text) for title, svg, text in made if svg]


def _outputs(layers: Sequence[LayerQuality]) -> str:
    series = _by_kind(layers, lambda layer: layer.output_error)
    if not series:
        return ""
    with _figure("layer", "relative error") as (axes, finish):
        _plot(axes, series)
        axes.set_ylim(bottom=0)
    return finish()


def _weights(layers: Sequence[LayerQuality]) -> str:
    finite = [layer for layer in layers if abs(layer.sqnr) != float("inf")]
    series = _by_kind(finite, lambda layer: layer.sqnr)
    if not series:
        return ""
    with _figure("layer", "SQNR, dB") as (axes, finish):
        _plot(axes, series)
    return finish()


def _depth(depth: Sequence[float]) -> str:
    if not depth:
        return ""
    with _figure("layer", "relative error") as (axes, finish):
        axes.plot(range(len(depth)), depth, color=_SERIES[0], linewidth=1.8)
        axes.fill_between(range(len(depth)), depth, color=_SERIES[0], alpha=0.15)
        axes.set_ylim(bottom=0)
    return finish()


def _frontier(found: Measurement) -> str:
    with _figure("bits a weight, scales included", "loss, nats a token") as (axes, finish):
        bits, loss = zip(*found.frontier, strict=True)
        axes.plot(bits, loss, color=_SERIES[0], linewidth=1.8, label="best mix by sensitivity")
        total = found.quality.total
        if total is not None and total.comparison is not None and total.comparison.divergence > 0:
            axes.plot(
                [found.bits_per_weight], [total.comparison.divergence], "o", color=_SERIES[1], label="this package"
            )
        axes.set_yscale("log")
        _legend(axes)
    return finish()


def _frontier_text() -> str:
    return (
        "The smallest loss that a mix of precisions can have at each size, as the sensitivities promise it; `convert "
        "--bits` takes a point of this line. The package's own loss is measured."
    )


def _by_kind(layers: Sequence[LayerQuality], value: Any) -> dict[str, list[tuple[int, float]]]:
    """Values of the blocks' layers by their kind: `attn.q_proj` of layer 0, 1, ..."""
    series: dict[str, list[tuple[int, float]]] = {}
    for layer in layers:
        parts = layer.role.split(".", 2)
        if layer.role in HEAD_ROLES or len(parts) != 3 or value(layer) is None:
            continue
        series.setdefault(parts[2].removesuffix("_proj"), []).append((int(parts[1]), value(layer)))
    return series


def _plot(axes: Any, series: dict[str, list[tuple[int, float]]]) -> None:
    for index, (name, points) in enumerate(series.items()):
        colour = _SERIES[index % len(_SERIES)]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, marker=".", markersize=4, label=name)
    _legend(axes)


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, fontsize=8, ncols=7, loc="lower left", bbox_to_anchor=(0, 1.0), handlelength=1.2)


@contextmanager
def _figure(x: str, y: str) -> Iterator[tuple[Any, Callable[[], str]]]:
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


def _adapted(svg: str) -> str:
    """The drawing alone, with the page's colours and fonts, as wide as its place."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'font: ([0-9.]+px) [^;"]*', r"font: \1 inherit", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    return re.sub(r'<svg ([^>]*?)width="[^"]*" ([^>]*?)height="[^"]*"', r"<svg \1\2", svg, count=1)
