"""What linear layers read: every token scaled to one size, and rounded to integers where the layer wants that."""

from __future__ import annotations

from typing import Final

import numpy as np

from bitnet_onnx.converters.coreml._graph import Graph
from bitnet_onnx.converters.coreml._tools import Value

#: What the largest value of a token becomes: the integers of 8 bits, exact in float16.
PEAK: Final = 127
#: As in `bitnet_onnx.activations`.
_FLOOR: Final = 1e-5
ROUNDED_BITS: Final = 8


class LayerInput:
    """A value that linear layers read.

    Scaled by its largest magnitude a token fits float16 whatever it holds, and no sum of products overflows; the
    result is multiplied by the inverse. With 16 bits the integers would not be exact in float16, whose own rounding
    takes their place.

    Args:
        graph: where operations go.
        value: float32 `[1, query, width]`.
        name: first part of the names of what is made of it.
    """

    def __init__(self, graph: Graph, value: Value, name: str) -> None:
        self._graph = graph
        self.value = value
        self._name = name
        self._scales: tuple[Value, Value] | None = None
        self._scaled: dict[bool, Value] = {}

    def scaled(self, activation_bits: int) -> tuple[Value, Value]:
        """The tokens as a layer of so many bits reads them, float16, and their steps, float32 `[1, query, 1]`."""
        ops, rounded = self._graph.ops, activation_bits == ROUNDED_BITS
        if self._scales is None:
            magnitude = ops.abs(x=self.value)
            largest = ops.reduce_max(x=magnitude, axes=[-1], keep_dims=True)
            largest = ops.maximum(x=largest, y=np.float32(_FLOOR))
            scale = ops.real_div(x=np.float32(PEAK), y=largest)
            self._scales = scale, ops.mul(x=largest, y=np.float32(1 / PEAK), name=f"{self._name}_step")
        scale, step = self._scales
        if rounded not in self._scaled:
            x = ops.mul(x=self.value, y=scale)
            if rounded:
                x = ops.round(x=x)
            self._scaled[rounded] = self._graph.narrow(x, f"{self._name}_{'integers' if rounded else 'scaled'}")
        return self._scaled[rounded], step
