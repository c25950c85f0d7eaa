"""Activation functions of an MLP, in float32: the square of relu leaves float16 behind at 256."""

from __future__ import annotations

import numpy as np

from bitnet_onnx.converters.coreml._graph import Graph
from bitnet_onnx.converters.coreml._tools import Value
from bitnet_onnx.decoder import MlpActivation


def activate(graph: Graph, x: Value, activation: MlpActivation) -> Value:
    """The non-linearity of a float32 value, element by element."""
    ops = graph.ops
    match activation:
        case MlpActivation.SILU:
            return ops.silu(x=x)
        case MlpActivation.RELU:
            return ops.relu(x=x)
        case MlpActivation.RELU2:
            return ops.square(x=ops.relu(x=x))
        case MlpActivation.GELU:
            return ops.gelu(x=x, mode="EXACT")
        case MlpActivation.GELU_TANH:
            return ops.gelu(x=x, mode="TANH_APPROXIMATION")
        case MlpActivation.QUICK_GELU:
            return ops.mul(x=x, y=ops.sigmoid(x=ops.mul(x=x, y=np.float32(1.702))))
