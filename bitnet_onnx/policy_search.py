"""The cheapest precisions for a bound on the loss, or the least loss for a number of bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.errors import InputError

#: Steps into which the largest possible size is divided; smaller sizes are kept as they are.
_STEPS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to store a unit.

    Attributes:
        bits: of all its weights together.
        loss: what it costs, in the same measure for all units; losses of units add up.
    """

    bits: int
    loss: float


def least_loss(units: Sequence[Sequence[Choice]], bits: float) -> tuple[int, ...]:
    """One choice for each unit, with the smallest sum of losses among those that fit.

    Args:
        units: the choices of each.
        bits: the most that all may take together.

    Raises:
        InputError: even the smallest choices take more.
    """
    table = _Table(units)
    smallest = sum(min(choice.bits for choice in unit) for unit in units)
    if smallest > bits:
        raise InputError(f"{bits:.0f} bits are too few: the smallest choices take {smallest}")
    return table.choices(table.fitting(bits))


def fewest_bits(units: Sequence[Sequence[Choice]], loss: float) -> tuple[int, ...]:
    """One choice for each unit, with the smallest sum of bits among those whose losses add up to at most `loss`.

    Raises:
        InputError: even the best choices lose more.
    """
    table = _Table(units)
    best = table.loss[-1]
    if best > loss:
        raise InputError(f"a loss of {loss:g} cannot be reached: the best choices lose {best:g}")
    return table.choices(int(np.argmax(table.loss <= loss)))


class _Table:
    """The least loss for every number of steps: dynamic programming over units (multiple-choice knapsack).

    Sizes are rounded up to steps, so that what is found always fits; where all sizes together are at most the number
    of steps, it is exact.
    """

    def __init__(self, units: Sequence[Sequence[Choice]]) -> None:
        if not units or not all(units):
            raise InputError("there is a unit without a choice")
        largest = sum(max(choice.bits for choice in unit) for unit in units)
        self._step = max(1, -(-largest // _STEPS))
        size = sum(self._cost(max(choice.bits for choice in unit)) for unit in units) + 1
        self._units = units
        loss = np.zeros(size)
        self._taken = np.zeros((len(units), size), np.uint8)
        for index, unit in enumerate(units):
            best = np.full(size, np.inf)
            for number, choice in enumerate(unit):
                cost = self._cost(choice.bits)
                candidate = np.full(size, np.inf)
                candidate[cost:] = loss[: size - cost] + choice.loss
                better = candidate < best
                best[better] = candidate[better]
                self._taken[index][better] = number
            loss = best
        self.loss = loss

    def fitting(self, bits: float) -> int:
        """Steps within a number of bits."""
        return min(int(bits // self._step), len(self.loss) - 1)

    def choices(self, steps: int) -> tuple[int, ...]:
        """What was chosen for the least loss within `steps`."""
        if not np.isfinite(self.loss[steps]):
            # Rounding up leaves no room although the smallest choices fit: they are the answer.
            return tuple(min(range(len(unit)), key=lambda i, unit=unit: unit[i].bits) for unit in self._units)  # type: ignore[misc]
        chosen: list[int] = []
        for index in range(len(self._units) - 1, -1, -1):
            number = int(self._taken[index][steps])
            chosen.append(number)
            steps -= self._cost(self._units[index][number].bits)
        return tuple(reversed(chosen))

    def _cost(self, bits: int) -> int:
        return -(-bits // self._step)
