"""The function body of `bitnet::GatedActivation` in standard ONNX operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from bitnet_onnx.converters.onnx.bodies import traced_function
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.gated import Activation

if TYPE_CHECKING:
    from onnxscript import OpBuilder

OPERATOR: Final = "GatedActivation"


def gated_overload(activation: str, separate: bool) -> str:
    """The name of the body; `separate`: gate and up are two inputs."""
    return f"{activation}_separate" if separate else activation


def gated_body(activation: str, separate: bool) -> ir.Function:
    """The body for one activation.

    Args:
        activation: one of `bitnet_onnx.gated.Activation`.
        separate: gate and up are inputs 0 and 1; otherwise input 0 holds both.

    Raises:
        UnsupportedError: the activation is unknown.
    """
    if activation not in set(Activation):
        raise UnsupportedError(f"activation is '{activation}': known values are {', '.join(Activation)}")

    def trace(op: OpBuilder, x: ir.Value, up: ir.Value | None = None) -> ir.Value:
        if up is None:
            x, up = op.Split(x, axis=-1, num_outputs=2, _outputs=2)
        return op.Mul(_activated(op, x, Activation(activation)), up)

    inputs = ("X", "up") if separate else ("X",)
    return traced_function(OPERATOR, trace, inputs, gated_overload(activation, separate), ("activation",))


def _activated(op: OpBuilder, gate: ir.Value, activation: Activation) -> ir.Value:
    match activation:
        case Activation.SILU:
            return op.Mul(gate, op.Sigmoid(gate))
        case Activation.RELU2:
            positive = op.Relu(gate)
            return op.Mul(positive, positive)
        case Activation.GELU:
            return op.Gelu(gate, approximate="none")
        case Activation.GELU_TANH:
            return op.Gelu(gate, approximate="tanh")
