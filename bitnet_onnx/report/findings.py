"""What the measurements mean, in words: a verdict, and what to do about the layers that cost most."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

from bitnet_onnx.policy import HEAD_ROLES
from bitnet_onnx.report.layers import LayerQuality
from bitnet_onnx.report.measurement import Measurement

#: Perplexity over that of the float model up to which a verdict holds.
_LIMITS: Final = (1.02, 1.1, 1.5, 5.0)
#: Groups that are still worth making finer.
_COARSE: Final = 64
_FINE: Final = 32
_MOST_BITS: Final = 8
_ROUNDED: Final = {"round", "rtn", "absmean"}


class Level(enum.StrEnum):
    """How bad it is."""

    GOOD = "good"
    FAIR = "fair"
    POOR = "poor"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one thing to know.

    Attributes:
        level: how bad it is.
        title: in a few words.
        text: why, with the numbers.
    """

    level: Level
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A layer that costs much.

    Attributes:
        layer: which.
        share: of the squared error of all outputs.
        advice: what would help it.
    """

    layer: LayerQuality
    share: float
    advice: str


def judge(found: Measurement) -> Verdict:
    """The verdict, by the perplexity against that of the float model."""
    total = found.quality.total
    if total is None or total.comparison is None:
        return Verdict(Level.FAIR, "Not measured", "No text was scored.")
    ours, floats, ratio = total.perplexity, total.comparison.perplexity, total.comparison.perplexity_ratio
    numbers = (
        f"Perplexity {_number(ours)} against {_number(floats)} of the original ({_ratio(ratio)}) at "
        f"{found.bits_per_weight:.2f} bits a weight; both think the same token likeliest in "
        f"{100 * total.comparison.agreement:.0f} % of places."
    )
    if floats < found.vocab_size and not ours < found.vocab_size:
        return Verdict(
            Level.UNUSABLE,
            "Unusable: worse than guessing",
            f"{numbers} Guessing among all {found.vocab_size} tokens alike has {found.vocab_size}. {_instead(found)}",
        )
    titles = (
        (Level.GOOD, "As good as the original"),
        (Level.GOOD, "Close to the original"),
        (Level.FAIR, "Noticeably worse than the original"),
        (Level.POOR, "Badly damaged"),
    )
    for limit, (level, title) in zip(_LIMITS, titles, strict=True):
        if ratio <= limit:
            return Verdict(level, title, numbers if level is Level.GOOD else f"{numbers} {_instead(found)}")
    return Verdict(Level.UNUSABLE, "Unusable", f"{numbers} {_instead(found)}")


def findings(found: Measurement, count: int = 8) -> tuple[Finding, ...]:
    """The layers that cost most, worst first: by the relative error of outputs, or of weights where none was seen."""
    errors = [(_error(layer), layer) for layer in found.layers]
    total = sum(error**2 for error, _ in errors)
    worst = sorted(errors, key=lambda pair: -pair[0])[:count]
    return tuple(
        Finding(layer, error**2 / total, _advice(layer, trained=found.trained_ternary))
        for error, layer in worst
        if error > 0 and math.isfinite(total)
    )


def _error(layer: LayerQuality) -> float:
    if layer.output_error is not None:
        return layer.output_error
    return 0.0 if math.isinf(layer.sqnr) and layer.sqnr > 0 else 10 ** (-layer.sqnr / 20)


def _advice(layer: LayerQuality, *, trained: bool) -> str:
    bits = int(layer.weights.removeprefix("int")) if layer.weights.startswith("int") else 0
    if layer.weights == "ternary" and not trained:
        return "train it to be ternary, or give it int4"
    if bits and layer.method in _ROUNDED:
        return f"calibrate{_finer(layer)}; then int{bits + 2}" if bits < _MOST_BITS else "calibrate"
    if bits and bits < _MOST_BITS:
        return f"int{bits + 2}{_finer(layer)}"
    if layer.activation_bits == _MOST_BITS and layer.role not in HEAD_ROLES:
        return "16-bit activations"
    return "nothing that would be worth it"


def _finer(layer: LayerQuality) -> str:
    if layer.group_size == 0 or layer.group_size > _COARSE:
        return f", groups of {_COARSE}"
    return f", groups of {_FINE}" if layer.group_size > _FINE else ""


def _instead(found: Measurement) -> str:
    """What to do about a bad model."""
    blocks = [layer for layer in found.layers if layer.role not in HEAD_ROLES]
    if any(layer.weights == "ternary" and layer.sqnr < 20 for layer in blocks) and not found.trained_ternary:
        return "These weights were not trained to be ternary: train the model, or convert it to int4."
    if any(layer.method in _ROUNDED for layer in blocks):
        return "Calibrate it (`bitnet-onnx calibrate`, then `convert --calibration`), or give it more bits."
    return "Give it more bits (`convert --max-loss`), finer groups, or train it."


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


def _ratio(value: float) -> str:
    return f"{value:.3f} times" if value < 10 else f"{value:.3g} times"
