"""The norms of a decoder in operators that have gradients."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.decoder import DecoderSpec, Norm
from bitnet_onnx.training.graph._builder import Builder


class Norms:
    """Emits norms over the last axis.

    Args:
        builder: where the nodes go.
        spec: what the norms compute.
        parameters: weights and biases by role; those of a norm without are missing.
    """

    def __init__(self, builder: Builder, spec: DecoderSpec, parameters: dict[str, ir.Value]) -> None:
        self._builder = builder
        self._spec = spec
        self._parameters = parameters

    def apply(self, role: str, x: ir.Value, width: int) -> ir.Value:
        """The norm `role` of `x`, whose last axis has `width` features."""
        weight = self._parameters.get(f"{role}.weight")
        if self._spec.norm is Norm.RMS:
            return self.rms(module_path(role), x, weight, self._spec.norm_epsilon)
        build = self._builder
        if weight is None:
            weight = build.constant(f"constant.ones_{width}", np.ones(width, np.float32))
        bias = self._parameters.get(f"{role}.bias")
        if bias is None:
            bias = build.constant(f"constant.zeros_{width}", np.zeros(width, np.float32))
        # Mean and inverse deviation are what the gradient is made of: without them onnxruntime-training computes none.
        return build.nodes(
            f"{module_path(role)}/LayerNormalization",
            [x, weight, bias],
            3,
            {"axis": -1, "epsilon": float(self._spec.norm_epsilon)},
        )[0]

    def rms(self, path: str, x: ir.Value, weight: ir.Value | None, epsilon: float) -> ir.Value:
        """RMSNorm in the plain operators that ONNX Runtime fuses into one."""
        build = self._builder
        squares = build.node(f"{path}/Pow", [x, build.scalar(2.0)])
        mean = build.node(f"{path}/ReduceMean", [squares], {"axes": [-1], "keepdims": 1})
        root = build.node(f"{path}/Sqrt", [build.node(f"{path}/Add", [mean, build.scalar(epsilon)])])
        normalized = build.node(f"{path}/Div", [x, root])
        return normalized if weight is None else build.node(f"{path}/Mul", [normalized, weight])
