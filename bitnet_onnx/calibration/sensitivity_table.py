"""What each precision of each layer costs: the table that the search for a policy reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitnet_onnx.errors import InputError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.policy_search import Choice, fewest_bits, least_loss
from bitnet_onnx.quantization.method import MethodName


@dataclass(frozen=True, slots=True)
class Measured:
    """One precision of one unit.

    Attributes:
        precision: of all its layers.
        bits: of all its weights, scales included.
        error: root of the squared error of its output over that of the output itself.
        loss: Kullback-Leibler divergence from the float model, nats a token.
        measured: by a run of the model; otherwise scaled from the next coarser precision by the squared error.
    """

    precision: Precision
    bits: int
    error: float
    loss: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Unit:
    """Layers that get one precision, because they are one node then.

    Attributes:
        roles: the layers.
        weights: how many they have.
        choices: by ascending bits.
    """

    roles: tuple[str, ...]
    weights: int
    choices: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A policy by the table.

    Attributes:
        policy: every layer by its name.
        bits_per_weight: of all matrices, scales included.
        loss: that the table promises, nats a token.
    """

    policy: Policy
    bits_per_weight: float
    loss: float


def search_policy(
    units: Sequence[Unit], *, bits_per_weight: float | None = None, max_loss: float | None = None
) -> Found:
    """The policy of the least loss for a number of bits, or of the fewest bits for a loss.

    Args:
        units: the table.
        bits_per_weight: the most, over all matrices of the model, head and embedding included.
        max_loss: the most, nats a token.

    Raises:
        InputError: not exactly one bound is given, or the table has nothing within it.
    """
    if not units:
        raise InputError("the statistics have no sensitivities: `bitnet-onnx calibrate --sensitivity` measures them")
    weights = sum(unit.weights for unit in units)
    table = [[Choice(choice.bits, choice.loss) for choice in unit.choices] for unit in units]
    if (bits_per_weight is None) == (max_loss is None):
        raise InputError("give either the bits of a weight or the most that may be lost")
    if bits_per_weight is not None:
        smallest = sum(min(choice.bits for choice in unit) for unit in table) / weights
        if not smallest <= bits_per_weight:
            raise InputError(
                f"{bits_per_weight:g} bits a weight are too few: the smallest precisions take {smallest:.2f}"
            )
        chosen = least_loss(table, bits_per_weight * weights)
    else:
        chosen = fewest_bits(table, max_loss or 0.0)
    taken = [unit.choices[index] for unit, index in zip(units, chosen, strict=True)]
    overrides = tuple(
        (role, choice.precision) for unit, choice in zip(units, taken, strict=True) for role in unit.roles
    )
    return Found(
        Policy(overrides=overrides),
        sum(choice.bits for choice in taken) / weights,
        sum(choice.loss for choice in taken),
    )


def sensitivity_json(units: Sequence[Unit]) -> str:
    """The table as JSON."""
    return json.dumps([asdict(unit) for unit in units])


def read_sensitivity(text: str, source: str) -> tuple[Unit, ...]:
    """The table that `sensitivity_json` wrote.

    Raises:
        InputError: it is none; the message begins with `source`.
    """
    try:
        units = tuple(
            Unit(
                tuple(str(role) for role in unit["roles"]),
                int(unit["weights"]),
                tuple(_measured(choice) for choice in unit["choices"]),
            )
            for unit in json.loads(text)
        )
        if not all(unit.choices and unit.roles and unit.weights > 0 for unit in units):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError, InputError):
        raise InputError(
            f"{source}: the table of sensitivities is malformed; `bitnet-onnx calibrate --sensitivity` makes one"
        ) from None
    return units


def _measured(fields: Mapping[str, Any]) -> Measured:
    given = fields["precision"]
    precision = Precision(
        Weights(given["weights"]),
        int(given["group_size"]),
        int(given["activation_bits"]),
        method=MethodName(given["method"]),
    )
    bits, error, loss = int(fields["bits"]), float(fields["error"]), float(fields["loss"])
    if bits <= 0 or not (math.isfinite(error) and math.isfinite(loss)):
        raise ValueError
    return Measured(precision, bits, error, loss, bool(fields["measured"]))
