"""The log of a run as series of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.monitoring.json_log import read_log
from bitnet_onnx.training.monitoring.quantization import LayerQuantization, QuantizationRecord

#: The log's name in the directory of a run.
LOG_NAME: Final = "log.jsonl"

#: Points of a series: step and value.
Series = list[tuple[float, float]]


@dataclass(slots=True)
class History:
    """What a run's log says.

    Attributes:
        settings: of the run.
        loss: of each step.
        terms: of the loss, by name, for each step.
        rate: learning rate.
        strength: of quantization: mean over the groups.
        seconds: that the logged steps took together.
        timed: tokens of these steps.
        positions: tokens of all steps.
        validation: cross entropy of each evaluation.
        best: step and loss of the best evaluation.
        quantization: every measurement.
        rollbacks: step, step gone back to, and why.
        result: what came out; empty where the run is not at its end.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    loss: Series = field(default_factory=list)
    terms: dict[str, Series] = field(default_factory=dict)
    rate: Series = field(default_factory=list)
    strength: Series = field(default_factory=list)
    seconds: float = 0.0
    timed: int = 0
    positions: int = 0
    validation: Series = field(default_factory=list)
    best: tuple[int, float] | None = None
    quantization: list[QuantizationRecord] = field(default_factory=list)
    rollbacks: list[tuple[int, int, str]] = field(default_factory=list)
    result: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> History:
        """Read a log.

        Raises:
            InputError: the file is missing, or is not the log of a run.
        """
        history = cls()
        try:
            for number, fields in enumerate(read_log(path), 1):
                try:
                    history._add(fields)
                except (KeyError, TypeError, ValueError, AttributeError) as cause:
                    raise InputError(f"{path} line {number}: not a record of a run ({cause!r})") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        return history

    def _add(self, fields: dict[str, Any]) -> None:
        kind = fields.pop("kind")
        if kind == "run":
            self.settings = dict(fields["settings"])
        elif kind == "step":
            self._step(fields)
        elif kind == "evaluation":
            loss = _number(fields["loss"])
            self.validation.append((int(fields["step"]), loss))
            if fields["best"]:
                self.best = int(fields["step"]), loss
        elif kind == "quantization":
            layers = {str(name): _layer(layer) for name, layer in fields["layers"].items()}
            self.quantization.append(QuantizationRecord(int(fields["step"]), layers))
        elif kind == "rollback":
            self.rollbacks.append((int(fields["step"]), int(fields["to"]), str(fields["reason"])))
        elif kind == "result":
            self.result = fields

    def _step(self, fields: dict[str, Any]) -> None:
        step = int(fields["step"])
        self.loss.append((step, _number(fields["loss"])))
        self.rate.append((step, _number(fields["rate"])))
        strength = [_number(value) for value in fields["strength"]]
        if strength:
            self.strength.append((step, sum(strength) / len(strength)))
        for name, value in fields["terms"].items():
            self.terms.setdefault(str(name), []).append((step, _number(value)))
        self.seconds += _number(fields["seconds"])
        self.timed += int(fields["positions"])
        self.positions = int(fields["total_positions"])


def _number(value: object) -> float:
    """What the log writes as null is not finite."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)


def _layer(fields: Mapping[str, object]) -> LayerQuantization:
    flips = fields["flips"]
    return LayerQuantization(
        flips=None if flips is None else _number(flips),
        zeros=_number(fields["zeros"]),
        scale=_number(fields["scale"]),
        drift=_number(fields["drift"]),
        sqnr=_number(fields["sqnr"]),
    )
