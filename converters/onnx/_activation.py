"""The activation of an MLP in standard operators, where no operator of ours has it."""

from __future__ import annotations

import onnx_ir as ir

from bitnet_onnx.converters.onnx._emitter import Emitter
from bitnet_onnx.decoder import MlpActivation


def emit_activation(emit: Emitter, path: str, x: ir.Value, activation: MlpActivation) -> ir.Value:
    """Apply an activation to a value.

    Args:
        emit: where the nodes go.
        path: module path.
        x: float `[..., I]`.
        activation: which.
    """
    match activation:
        case MlpActivation.RELU:
            return emit.node(f"{path}/Relu", [x])
        case MlpActivation.RELU2:
            positive = emit.node(f"{path}/Relu", [x])
            return emit.node(f"{path}/square/Mul", [positive, positive])
        case MlpActivation.GELU:
            return emit.node(f"{path}/Gelu", [x], {"approximate": "none"})
        case MlpActivation.GELU_TANH:
            return emit.node(f"{path}/Gelu", [x], {"approximate": "tanh"})
        case MlpActivation.SILU:
            return emit.node(f"{path}/silu/Mul", [x, emit.node(f"{path}/Sigmoid", [x])])
        case MlpActivation.QUICK_GELU:
            # x * sigmoid(1.702 x): Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
            steeper = emit.node(f"{path}/slope/Mul", [x, emit.scalar("quick_gelu", 1.702)])
            return emit.node(f"{path}/quick_gelu/Mul", [x, emit.node(f"{path}/Sigmoid", [steeper])])
