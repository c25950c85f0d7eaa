"""The non-linearities of an MLP in operators that have gradients, with as few passes over the values as possible."""

from __future__ import annotations

import math
from typing import Final

import onnx_ir as ir

from bitnet_onnx.decoder import MlpActivation
from bitnet_onnx.training.graph._builder import Builder

_ROOT: Final = math.sqrt(2 / math.pi)


def activate(build: Builder, path: str, x: ir.Value, activation: MlpActivation) -> ir.Value:
    """Apply an activation, element by element.

    Operator Gelu is avoided: onnxruntime-training has the gradient of the exact one only, and takes it for both.
    """
    match activation:
        case MlpActivation.RELU:
            return build.node(f"{path}/Relu", [x])
        case MlpActivation.RELU2:
            positive = build.node(f"{path}/Relu", [x])
            return build.node(f"{path}/square/Mul", [positive, positive])
        case MlpActivation.SILU:
            return _gate(build, path, x, x)
        case MlpActivation.QUICK_GELU:
            # Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
            return _gate(build, path, x, build.node(f"{path}/slope/Mul", [x, build.scalar(1.702)]))
        case MlpActivation.GELU_TANH:
            # The same paper; (1 + tanh(u)) / 2 is sigmoid(2 u), u = sqrt(2 / pi) x (1 + 0.044715 x^2).
            squares = build.node(f"{path}/square/Mul", [x, x])
            cubic = build.node(f"{path}/cubic/Mul", [squares, build.scalar(2 * _ROOT * 0.044715)])
            factor = build.node(f"{path}/factor/Add", [cubic, build.scalar(2 * _ROOT)])
            return _gate(build, path, x, build.node(f"{path}/argument/Mul", [x, factor]))
        case MlpActivation.GELU:
            # In the order in which ONNX Runtime knows it.
            error = build.node(f"{path}/Erf", [build.node(f"{path}/Div", [x, build.scalar(math.sqrt(2))])])
            twice = build.node(f"{path}/share/Add", [error, build.scalar(1)])
            product = build.node(f"{path}/product/Mul", [x, twice])
            return build.node(f"{path}/half/Mul", [product, build.scalar(0.5)])


def _gate(build: Builder, path: str, x: ir.Value, argument: ir.Value) -> ir.Value:
    """`x * sigmoid(argument)`."""
    return build.node(f"{path}/gate/Mul", [x, build.node(f"{path}/Sigmoid", [argument])])
