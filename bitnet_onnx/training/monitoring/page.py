"""A run as one HTML page that loads nothing else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.metrics import perplexity
from bitnet_onnx.report import drawing, markup
from bitnet_onnx.training.graph.options import Term
from bitnet_onnx.training.monitoring.history import LOG_NAME, History, Series
from bitnet_onnx.training.monitoring.quantization import LayerQuantization

#: The page's name in the directory of a run.
PAGE_NAME: Final = "report.html"

#: Points of a line: more than its pixels are not seen.
_POINTS: Final = 800
#: Evaluations that are marked one by one.
_MARKED: Final = 60
#: Share of a run on both sides over which the train loss is smoothed.
_SMOOTHING: Final = 0.02
_MINUTE: Final = 60
_HOUR: Final = 3600


def is_run(directory: Path) -> bool:
    """Whether a directory holds a training run."""
    return (directory / LOG_NAME).is_file()


def write_page(directory: Path, output: Path | None = None) -> Path:
    """Write the page of a run out of its log, and return its path.

    Args:
        directory: of the run.
        output: where the page goes; None is `report.html` in the directory.

    Raises:
        InputError: the log is missing or broken, or the page cannot be written.
        UnsupportedError: the library that draws is not installed.
    """
    path = output or directory / PAGE_NAME
    page = render(History.read(directory / LOG_NAME), directory.resolve().name)
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def render(history: History, name: str) -> str:
    """The page.

    Args:
        history: what the log says.
        name: of the run.
    """
    title = f"{name}: {_state(history)}"
    return markup.document(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            markup.figures(_figures(history)),
            *_losses(history),
            *_schedules(history),
            *_quantization(history),
            *_rollbacks(history),
            *_layers(history),
            *_settings(history),
        ],
    )


def _state(history: History) -> str:
    step = int(history.loss[-1][0]) if history.loss else 0
    steps = str(history.settings.get("loop.steps", ""))
    return f"step {step:,} of {int(steps):,}" if steps.isdecimal() and len(steps) < 16 else f"step {step:,}"


def _figures(history: History) -> Iterator[tuple[str, str]]:
    if history.best is not None:
        step, loss = history.best
        yield f"best validation loss, nats a token, at step {step:,}", markup.number(loss)
        yield "its perplexity", markup.number(perplexity(loss))
    if history.loss:
        yield "train loss of the last steps", markup.number(_last(history.loss))
    if history.positions:
        yield "tokens read", f"{history.positions:,}"
    if history.seconds and history.timed:
        speed = history.timed / history.seconds
        yield "tokens a second", f"{speed:,.0f}"
        yield "time in steps", _duration(history.positions / speed)
    for name, value in history.result.items():
        # The model's own evaluation is above.
        if name not in {"loss", "perplexity"} and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name.replace("_", " "), markup.number(value) if isinstance(value, float) else f"{value:,}"


def _losses(history: History) -> Iterator[str]:
    train = _finite(history.terms.get(Term.CROSS_ENTROPY, history.loss))
    validation = _finite(history.validation)
    if not train and not validation:
        return

    def draw(logarithmic: bool) -> str:
        with drawing.figure("step", "cross entropy, nats a token") as (axes, finish):
            if train:
                colour = drawing.SERIES[0]
                axes.plot(*_line(_thin(train)), color=colour, linewidth=0.7, alpha=0.3)
                axes.plot(*_line(_thin(_smooth(train))), color=colour, linewidth=1.6, label="train, smoothed")
            if validation:
                axes.plot(
                    *_line(validation),
                    color=drawing.SERIES[1],
                    linewidth=1.6,
                    marker="o" if len(validation) <= _MARKED else None,
                    markersize=3,
                    label="validation",
                )
            if logarithmic:
                drawing.logarithmic(axes)
            drawing.legend(axes)
        return finish()

    yield "<h2>Loss</h2><p class='soft'>Of the next token. Validation is fully quantized where the model is.</p>"
    yield markup.switch("logarithmic", "logarithmic axes", draw(False), draw(True))
    if len(history.terms) > 1:
        terms = {name: _thin(_smooth(points)) for name, points in history.terms.items()}
        yield _chart("Terms of the loss", "value", terms, "Before they are weighted, smoothed.")


def _schedules(history: History) -> Iterator[str]:
    if history.rate:
        yield _chart("Learning rate", "learning rate", {"learning rate": _thin(history.rate)}, "Of each step.")
    if history.strength:
        strength = {"mean of all groups": _thin(history.strength)}
        yield _chart("Strength of quantization", "strength", strength, "0 is float, 1 is quantized.")


def _quantization(history: History) -> Iterator[str]:
    charts: tuple[tuple[str, str, str, Callable[[LayerQuantization], float | None]], ...] = (
        (
            "Flips",
            "share of codes",
            "Ternary codes that changed since the measurement before, by kind of layer.",
            lambda layer: layer.flips,
        ),
        ("Zeros", "share of codes", "Ternary codes that are zero, by kind of layer.", lambda layer: layer.zeros),
        (
            "Drift of the scale",
            "relative to the start",
            "How far the mean magnitude of the weights has moved.",
            lambda layer: layer.drift,
        ),
        (
            "Signal to quantization noise",
            "SQNR, dB",
            "Of the master weights: higher is nearer to the ternary grid.",
            lambda layer: layer.sqnr,
        ),
    )
    for title, axis, text, value in charts:
        series = _by_kind(history, value)
        if series:
            yield _chart(title, axis, series, text)


def _by_kind(history: History, value: Callable[[LayerQuantization], float | None]) -> dict[str, Series]:
    """Means over the layers of each kind, such as `attn.q`, for each measurement."""
    series: dict[str, Series] = {}
    for record in history.quantization:
        found: dict[str, list[float]] = {}
        for name, layer in record.layers.items():
            number = value(layer)
            if number is not None and math.isfinite(number):
                found.setdefault(_kind(name), []).append(number)
        for kind, numbers in found.items():
            series.setdefault(kind, []).append((record.step, sum(numbers) / len(numbers)))
    return {kind: _thin(points) for kind, points in series.items()}


def _kind(name: str) -> str:
    parts = name.removesuffix(".weight").removesuffix("_proj").split(".")
    return ".".join(parts[2:]) if len(parts) > 2 and parts[0] == "layers" else ".".join(parts)


def _rollbacks(history: History) -> Iterator[str]:
    if history.rollbacks:
        rows = [[f"{step:,}", f"{to:,}", reason] for step, to, reason in history.rollbacks]
        yield "<h2>Went back</h2>" + markup.table(("step", "back to", "why"), rows, texts=(2,))


def _layers(history: History) -> Iterator[str]:
    if not history.quantization:
        return
    last = history.quantization[-1]
    rows = [
        [
            name.removesuffix(".weight"),
            "" if layer.flips is None else f"{100 * layer.flips:.3f} %",
            f"{100 * layer.zeros:.1f} %",
            markup.number(layer.scale),
            f"{100 * layer.drift:+.1f} %",
            f"{layer.sqnr:.2f}",
        ]
        for name, layer in last.layers.items()
    ]
    head = ("matrix", "flips", "zeros", "scale", "drift", "SQNR, dB")
    yield (
        f"<details><summary>All {len(rows)} ternary matrices at step {last.step:,}</summary>"
        f"{markup.table(head, rows)}</details>"
    )


def _settings(history: History) -> Iterator[str]:
    rows = [[name, str(value)] for name, value in history.settings.items() if value not in ("", None)]
    if rows:
        table = markup.table(("setting", "value"), rows, texts=(1,))
        yield f"<details><summary>Settings</summary>{table}</details>"


def _chart(title: str, axis: str, series: Mapping[str, Series], text: str) -> str:
    with drawing.figure("step", axis) as (axes, finish):
        for index, (name, points) in enumerate(series.items()):
            colour = drawing.SERIES[index % len(drawing.SERIES)]
            axes.plot(*_line(points), color=colour, linewidth=1.5, label=name)
        if len(series) > 1:
            drawing.legend(axes)
    return markup.chart(title, finish(), text)


def _line(points: Series) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _thin(points: Series) -> Series:
    """Means of equal parts, where there are more points than can be seen."""
    width = -(-len(points) // _POINTS)
    if width <= 1:
        return points
    parts = (points[start : start + width] for start in range(0, len(points), width))
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _smooth(points: Series) -> Series:
    """Means around each point, of fewer where the run begins and ends; what is not finite is passed over."""
    finite = _finite(points)
    reach = round(_SMOOTHING * len(finite))
    sums = list(itertools.accumulate((value for _, value in finite), initial=0.0))
    smooth = []
    for index, (step, _) in enumerate(finite):
        width = min(reach, index, len(finite) - 1 - index)
        smooth.append((step, (sums[index + width + 1] - sums[index - width]) / (2 * width + 1)))
    return smooth


def _last(points: Series) -> float:
    """The mean of the last part."""
    finite = _finite(points)
    part = finite[-max(1, round(_SMOOTHING * len(finite))) :]
    return sum(value for _, value in part) / len(part) if part else math.nan


def _finite(points: Series) -> Series:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _duration(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    return f"{seconds / _MINUTE:.1f} min" if seconds < _HOUR else f"{seconds / _HOUR:.1f} h"
