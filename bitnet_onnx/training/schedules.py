"""What changes over a run: the learning rate, the weights of the losses, and the strength of quantization.

Steps are counted from 0: the value of a step is that with which it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitnet_onnx.calibration.sensitivity_table import Unit
from bitnet_onnx.calibration.statistics_file import open_statistics
from bitnet_onnx.errors import InputError
from bitnet_onnx.policy import Weights
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.config_checks import has_strength
from bitnet_onnx.training.graph.options import Term
from bitnet_onnx.training.settings import (
    Curve,
    LayerOrder,
    OptimizerSettings,
    QuantizationSettings,
    Ramp,
    RateCurve,
    TrainingSettings,
)

#: Where the logistic function of `Curve.SIGMOID` begins and ends.
_SIGMOID_END = 6.0


def ramp_value(ramp: Ramp, step: int) -> float:
    """The value of a ramp in a step."""
    if step < ramp.begin:
        return ramp.start
    if ramp.curve is Curve.CONSTANT or step >= ramp.begin + ramp.steps:
        return ramp.end
    x = (step - ramp.begin) / ramp.steps
    match ramp.curve:
        case Curve.COSINE:
            x = (1 - math.cos(math.pi * x)) / 2
        case Curve.SIGMOID:
            first = _logistic(-_SIGMOID_END)
            x = (_logistic(_SIGMOID_END * (2 * x - 1)) - first) / (1 - 2 * first)
        case _:
            pass
    return ramp.start + (ramp.end - ramp.start) * x


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """The learning rate of a step.

    The warm-up's last step has the full rate. After it, `x` goes from 0 to 1 at the end of the run, and the share of
    the rate above the minimum is `(1 + cos(pi x)) / 2` (cosine), `1 - x` (linear), 1 (constant), or 1 and linear in
    the last part (WSD: Hu et al., "MiniCPM", 2024).
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    left = steps - settings.warmup
    match settings.curve:
        case RateCurve.COSINE:
            share = (1 + math.cos(math.pi * min(1.0, (step - settings.warmup) / left))) / 2
        case RateCurve.LINEAR:
            share = 1 - min(1.0, (step - settings.warmup) / left)
        case RateCurve.WSD:
            decay = min(left, round(settings.decay * steps))
            share = min(1.0, max(0, steps - step) / decay) if decay else 1.0
        case _:
            share = 1.0
    return settings.learning_rate * (settings.minimum + (1 - settings.minimum) * share)


def group_strengths(settings: QuantizationSettings, step: int) -> FloatArray:
    """The strength of each group of layers in a step, float32 `[groups]`, the first group first."""
    values = [ramp_value(settings.strength, step - settings.stride * group) for group in range(settings.groups)]
    return np.array(values, np.float32)


def layer_groups(settings: QuantizationSettings, layers: int) -> tuple[int, ...]:
    """The group of each layer: as many in each as the numbers allow.

    Args:
        settings: order and number of the groups.
        layers: of the model.

    Raises:
        InputError: there are more groups than layers, or the file of statistics is not usable or lacks a layer.
    """
    if settings.groups > layers:
        raise InputError(
            f"quantization.groups is {settings.groups}: the model has {layers} layers, and no group may be empty"
        )
    order = list(range(layers))
    match settings.order:
        case LayerOrder.BACKWARD:
            order.reverse()
        case LayerOrder.SENSITIVITY:
            if settings.statistics is None:
                raise InputError("quantization.order is sensitivity: quantization.statistics must name a file")
            units = open_statistics(settings.statistics).sensitivity
            losses = layer_losses(units, layers, str(settings.statistics))
            order.sort(key=lambda layer: losses[layer])
        case _:
            pass
    groups = [0] * layers
    for position, layer in enumerate(order):
        groups[layer] = position * settings.groups // layers
    return tuple(groups)


def layer_losses(units: Sequence[Unit], layers: int, source: str) -> list[float]:
    """What ternary weights in each layer alone lose, nats a token: the sum over its units.

    Args:
        units: a table of sensitivities.
        layers: of the model.
        source: begins a message.

    Raises:
        InputError: the table is empty, is of another model, or has nothing about ternary weights of a layer.
    """
    if not units:
        raise InputError(f"{source}: has no sensitivities: `bitnet-onnx calibrate --sensitivity` measures them")
    losses: dict[int, float] = {}
    for unit in units:
        group, _, rest = unit.roles[0].partition(".")
        number = rest.partition(".")[0]
        if group != "layers" or not (number.isascii() and number.isdigit() and len(number) < 6):
            continue
        if int(number) >= layers:
            raise InputError(f"{source}: has layer {number}, the model has {layers} layers; measure it with this model")
        ternary = [choice.loss for choice in unit.choices if choice.precision.weights is Weights.TERNARY]
        if not ternary:
            raise InputError(f"{source}: {unit.roles[0]:.80} has no sensitivity of ternary weights; measure it again")
        losses[int(number)] = losses.get(int(number), 0.0) + max(ternary)
    for layer in range(layers):
        if layer not in losses:
            raise InputError(f"{source}: layer {layer} has no sensitivity, the model has {layers} layers")
    return [losses[layer] for layer in range(layers)]


@dataclass(frozen=True, slots=True)
class Schedules:
    """All that changes over a run.

    Attributes:
        steps: of the run.
        optimizer: settings of the rate.
        quantization: settings of the strength; None where nothing is quantized.
        weights: of the terms that the graph has.
    """

    steps: int
    optimizer: OptimizerSettings
    quantization: QuantizationSettings | None
    weights: Mapping[Term, Ramp]

    @classmethod
    def of(cls, settings: TrainingSettings) -> Schedules:
        """Those of a run."""
        losses = settings.losses
        given = {
            Term.CROSS_ENTROPY: losses.cross_entropy,
            Term.DISTILLATION: losses.distillation,
            Term.RELATION: losses.relation,
            Term.GRID: losses.grid,
        }
        return cls(
            settings.loop.steps,
            settings.optimizer,
            settings.quantization if has_strength(settings) else None,
            {term: ramp for term, ramp in given.items() if ramp is not None},
        )

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(self.optimizer, step, self.steps)

    def strength(self, step: int) -> FloatArray | None:
        """The strength of each group in a step, float32 `[groups]`."""
        return None if self.quantization is None else group_strengths(self.quantization, step)

    def full_strength(self) -> FloatArray | None:
        """That of a model which is quantized altogether."""
        return None if self.quantization is None else np.ones(self.quantization.groups, np.float32)

    def term_weights(self, step: int) -> dict[Term, float]:
        """The weights of the terms in a step."""
        return {term: ramp_value(ramp, step) for term, ramp in self.weights.items()}


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
