"""Inputs of a graph as it declares them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.engines.engine import Inputs


class GraphInputs:
    """What must be given to a graph, besides its parameters.

    Args:
        model: the graph.
        parameters: names of inputs that the store holds.
    """

    def __init__(self, model: ir.Model, parameters: Collection[str]) -> None:
        self._kinds: Final[dict[str, tuple[np.dtype[Any], int]]] = {}
        for value in model.graph.inputs:
            if value.name is None or value.name in parameters:
                continue
            if value.dtype is None or value.shape is None:
                raise ValueError(f"input {value.name} of the training graph declares no type or shape")
            self._kinds[value.name] = value.dtype.numpy(), value.shape.rank()

    def arrays(self, inputs: Inputs) -> dict[str, npt.NDArray[Any]]:
        """The arrays that the graph reads, contiguous; what it does not read is left out.

        Raises:
            InputError: one is missing, or of another type or rank.
        """
        found = {}
        for name, (kind, rank) in self._kinds.items():
            if name not in inputs:
                raise InputError(f"the training graph reads {name}, which is not among its inputs {sorted(inputs)}")
            array = np.asarray(inputs[name], order="C")
            if array.dtype != kind or array.ndim != rank:
                raise InputError(
                    f"input {name} of the training graph is {array.dtype} of {array.ndim} dimensions, "
                    f"expected {kind} of {rank}"
                )
            found[name] = array
        return found


def loss_names(model: ir.Model, loss: str) -> list[str]:
    """The outputs that are losses, the total first.

    Raises:
        ValueError: the graph has no scalar output of that name.
    """
    named = {value.name: value for value in model.graph.outputs if value.name}
    shape = named[loss].shape if loss in named else None
    if shape is None or shape.rank() != 0:
        raise ValueError(f"the training graph has no output {loss} of shape []")
    return [loss, *(name for name in named if name.startswith(f"{loss}."))]
