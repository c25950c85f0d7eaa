"""What the training loop asks of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

#: Inputs of the training graph but for the parameters, by name.
Inputs = Mapping[str, npt.NDArray[Any]]


class GradientEngine(Protocol):
    """Computes losses and gradients of a training graph whose parameters lie in a `ParameterStore`."""

    def accumulate(self, inputs: Inputs) -> dict[str, float]:
        """Add the gradients of `loss` to the store's, and return all losses by output name (`loss`, `loss.*`)."""
        ...

    def evaluate(self, inputs: Inputs) -> dict[str, float]:
        """The cross entropy alone (`loss.cross_entropy`), of the values that the store holds now.

        What only other losses read, a teacher's logits among it, need not be given.
        """
        ...

    def close(self) -> None:
        """Let go of sessions and processes."""
        ...


def float_input(value: float) -> npt.NDArray[np.float32]:
    """A scalar input."""
    return np.array(value, np.float32)
