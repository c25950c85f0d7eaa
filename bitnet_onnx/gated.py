"""The numpy reference of `bitnet::GatedActivation`, described in `docs/attention.md`."""

from __future__ import annotations

import enum
import math

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import FloatArray


class Activation(enum.StrEnum):
    """What is applied to the gate of a feed-forward layer."""

    SILU = "silu"
    RELU2 = "relu2"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


_ERFC = np.vectorize(math.erfc, otypes=[np.float64])


def gated_activation(x: FloatArray, activation: str, up: FloatArray | None = None) -> FloatArray:
    """`act(gate) * up`.

    The activation is computed in float64 and rounded once; the kernels differ from it by a few units in the last place.

    Args:
        x: float32 `[..., 2 * I]`, the gate first; or the gate alone, `[..., I]`, where `up` is given.
        activation: one of `Activation`.
        up: float32 `[..., I]`.

    Returns:
        float32 `[..., I]`.

    Raises:
        InputError: the activation is unknown, `x` cannot be halved, or `up` is not of the gate's shape.
    """
    if activation not in set(Activation):
        raise InputError(f"activation is '{activation}': known values are {', '.join(Activation)}")
    if up is None:
        if x.ndim < 1 or x.shape[-1] % 2:
            raise InputError(f"X is {list(x.shape)}: its last axis must hold gate and up, an even number")
        x, up = np.split(x, 2, axis=-1)
    elif up.shape != x.shape:
        raise InputError(f"up is {list(up.shape)}: it must have the shape of the gate, {list(x.shape)}")
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        activated = _activate(x.astype(np.float64), Activation(activation)).astype(np.float32)
        result: FloatArray = activated * up
    return result


def _activate(x: npt.NDArray[np.float64], activation: Activation) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64]
    match activation:
        case Activation.SILU:
            result = x / (1 + np.exp(-x))
        case Activation.RELU2:
            result = np.square(np.maximum(x, 0))
        case Activation.GELU:
            # 1 + erf(z) = erfc(-z) and, below, (1 + tanh(u)) / 2 = 1 / (1 + e^-2u): no digits cancel for x < 0
            result = 0.5 * x * _ERFC(-x / math.sqrt(2))
        case Activation.GELU_TANH:
            result = x / (1 + np.exp(-math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)))
    return result
