"""Norms, in float32: a square of a float16 above 255 is infinite."""

from __future__ import annotations

import numpy as np

from bitnet_onnx.converters.coreml._graph import Graph, mil_name
from bitnet_onnx.converters.coreml._tools import Value
from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.decoder import DecoderSpec, Norm


class Norms:
    """Emits the norms of a decoder, each over the last axis.

    Args:
        graph: where operations go.
        spec: which norm, and its epsilon.
        tensors: its weights and biases.
    """

    def __init__(self, graph: Graph, spec: DecoderSpec, tensors: Tensors) -> None:
        self._graph = graph
        self._spec = spec
        self._tensors = tensors

    def apply(self, role: str, x: Value) -> Value:
        """The norm `role` of a float32 value."""
        if self._spec.norm is Norm.RMS:
            return self.rms(role, x, self._spec.norm_epsilon)
        name, ops = mil_name(role), self._graph.ops
        weight, bias = (self._tensor(f"{role}.{part}") for part in ("weight", "bias"))
        centred = ops.sub(x=x, y=ops.reduce_mean(x=x, axes=[-1], keep_dims=True))
        return ops.add(x=self._normalized(centred, weight, self._spec.norm_epsilon), y=bias, name=name)

    def rms(self, role: str, x: Value, epsilon: float) -> Value:
        """The root-mean-square norm whose weight is `role`."""
        return self._normalized(x, self._tensor(f"{role}.weight"), epsilon, mil_name(role))

    def _normalized(self, x: Value, weight: Value, epsilon: float, name: str | None = None) -> Value:
        ops = self._graph.ops
        mean = ops.reduce_mean(x=ops.mul(x=x, y=x), axes=[-1], keep_dims=True)
        inverse = ops.rsqrt(x=mean, epsilon=np.float32(epsilon))
        return self._graph.named("mul", name, x=ops.mul(x=x, y=inverse), y=weight)

    def _tensor(self, role: str) -> Value:
        return self._graph.constant(mil_name(role), lambda: self._tensors.read(role))
