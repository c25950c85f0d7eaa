"""A function of the program under construction: constants by name, and what every module asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.coreml._tools import Tools, Value
from bitnet_onnx.converters.coreml._weight_file import StandIn, WeightFile


class Graph:
    """Builds one function; both functions of a package share the constants of one weight file.

    Args:
        tools: coremltools.
        weights: where constants go.
    """

    def __init__(self, tools: Tools, weights: WeightFile) -> None:
        self.ops: Any = tools.ops
        self._tools = tools
        self._weights = weights
        self._values: dict[str, Value] = {}

    def stored(self, name: str) -> Value:
        """A constant that has been written."""
        if name not in self._values:
            stored = self._weights[name]
            dtype = self._weights.numpy_type(stored.kind)
            value = StandIn.of(stored, dtype) if stored.values is None else stored.values
            # A scalar is one of numpy's, or it would count as an array of rank 0, which MIL does not know.
            self._values[name] = self.ops.const(val=value if value.shape else value[()], name=name)
        return self._values[name]

    def constant(self, name: str, read: Callable[[], npt.NDArray[np.generic]], kind: str = "fp32") -> Value:
        """A constant that is read and written when it is first asked for."""
        if name not in self._weights:
            self._weights.put(name, read(), kind)
        return self.stored(name)

    def once(self, name: str, build: Callable[[], Value]) -> Value:
        """A value of that name, built when it is first asked for."""
        if name not in self._values:
            self._values[name] = build()
        return self._values[name]

    def narrow(self, x: Value, name: str | None = None) -> Value:
        """As float16."""
        return self._cast(x, "fp16", name)

    def wide(self, x: Value, name: str | None = None) -> Value:
        """As float32."""
        return self._cast(x, "fp32", name)

    def named(self, op: str, name: str | None, **inputs: object) -> Value:
        """An operation with a name of its own, or with one that the builder finds."""
        make = getattr(self.ops, op)
        return make(**inputs) if name is None else make(**inputs, name=name)

    def scaled(self, x: Value, factor: float) -> Value:
        """Times a number; `x` itself for 1."""
        return x if factor == 1 else self.ops.mul(x=x, y=np.float32(factor))

    def _cast(self, x: Value, dtype: str, name: str | None) -> Value:
        return self.named("cast", name, x=x, dtype=dtype)


def mil_name(role: str) -> str:
    """`layers.0.attn.q_proj` -> `layers_0_attn_q_proj`."""
    return role.replace(".", "_")
