"""What the training loop asks of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.optimizers.adamw import AdamW
from bitnet_onnx.training.optimizers.sgd import Sgd
from bitnet_onnx.training.optimizers.ternary_muon import TernaryMuon
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerName, OptimizerSettings


class Optimizer(Protocol):
    """Moves the values of a store along its gradients."""

    #: Steps taken; set where a run goes on.
    steps: int

    def step(self, rate: float, scale: float = 1.0) -> None:
        """Move all values once.

        Args:
            rate: learning rate.
            scale: factor on the gradients, of clipping.
        """
        ...

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """The arrays, by name, that the next step depends on besides values and gradients; filling them sets them."""
        ...

    def close(self) -> None:
        """End the threads."""
        ...


def make_optimizer(
    settings: OptimizerSettings,
    store: ParameterStore,
    *,
    ternary: frozenset[str] = frozenset(),
    threads: int | None = None,
) -> Optimizer:
    """The optimizer of a run.

    Args:
        settings: which one.
        store: what it moves.
        ternary: names of the tensors whose values are rounded to ternary codes.
        threads: None is a few; results do not depend on it.

    Raises:
        InputError: a rule for ternary weights, and there are none.
    """
    match settings.name:
        case OptimizerName.SGD:
            return Sgd(store, settings, threads=threads)
        case OptimizerName.TERNARY_MUON:
            if not ternary:
                raise InputError(f"optimizer.name is {settings.name}: no tensor is ternary; choose adamw")
            return TernaryMuon(store, settings, ternary, threads=threads)
        case _:
            return AdamW(store, settings, threads=threads)


def zero_state(optimizer: Optimizer) -> None:
    """Make an optimizer what it was before its first step."""
    optimizer.steps = 0
    for array in optimizer.state().values():
        array[...] = np.zeros((), array.dtype)
