"""The charts of a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitnet_onnx.policy import HEAD_ROLES
from bitnet_onnx.report.drawing import SERIES, figure, legend, plot
from bitnet_onnx.report.layers import LayerQuality
from bitnet_onnx.report.measurement import Measurement


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
    with figure("layer", "relative error") as (axes, finish):
        plot(axes, series)
        axes.set_ylim(bottom=0)
    return finish()


def _weights(layers: Sequence[LayerQuality]) -> str:
    finite = [layer for layer in layers if abs(layer.sqnr) != float("inf")]
    series = _by_kind(finite, lambda layer: layer.sqnr)
    if not series:
        return ""
    with figure("layer", "SQNR, dB") as (axes, finish):
        plot(axes, series)
    return finish()


def _depth(depth: Sequence[float]) -> str:
    if not depth:
        return ""
    with figure("layer", "relative error") as (axes, finish):
        axes.plot(range(len(depth)), depth, color=SERIES[0], linewidth=1.8)
        axes.fill_between(range(len(depth)), depth, color=SERIES[0], alpha=0.15)
        axes.set_ylim(bottom=0)
    return finish()


def _frontier(found: Measurement) -> str:
    with figure("bits a weight, scales included", "loss, nats a token") as (axes, finish):
        bits, loss = zip(*found.frontier, strict=True)
        axes.plot(bits, loss, color=SERIES[0], linewidth=1.8, label="best mix by sensitivity")
        total = found.quality.total
        if total is not None and total.comparison is not None and total.comparison.divergence > 0:
            axes.plot(
                [found.bits_per_weight], [total.comparison.divergence], "o", color=SERIES[1], label="this package"
            )
        axes.set_yscale("log")
        legend(axes)
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
