"""Non-linearities, computed in double precision and rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from bitnet_onnx.evaluation.mil._call import Call, operation
from bitnet_onnx.evaluation.mil._types import Array
from bitnet_onnx.evaluation.mil.operations.elementwise import erf


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


_PLAIN: Final[dict[str, Callable[[Array], Array]]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "sigmoid": _sigmoid,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(0, x),
    "softsign": lambda x: x / (1 + np.abs(x)),
}
#: With the parameters `alpha` and `beta`.
_SHAPED: Final[dict[str, Callable[[Array, float, float], Array]]] = {
    "clamped_relu": lambda x, alpha, beta: np.minimum(np.where(x >= 0, x, alpha * x), beta),
    "linear_activation": lambda x, alpha, beta: alpha * x + beta,
    "scaled_tanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "sigmoid_hard": lambda x, alpha, beta: np.minimum(np.maximum(alpha * x + beta, 0), 1),
    "elu": lambda x, alpha, _: np.where(x > 0, x, alpha * np.expm1(x)),
    "leaky_relu": lambda x, alpha, _: np.where(x >= 0, x, alpha * x),
    "thresholded_relu": lambda x, alpha, _: np.where(x >= alpha, x, 0),
}
#: Those that have both.
_TWO: Final = {"clamped_relu", "linear_activation", "scaled_tanh", "sigmoid_hard"}


@operation(*_PLAIN)
def plain(call: Call) -> Array:
    """A function without parameters."""
    return _PLAIN[call.operation.type](call.array("x").astype(np.float64)).astype(np.float32)


@operation(*_SHAPED)
def shaped(call: Call) -> Array:
    """A function with one or two parameters."""
    name = call.operation.type
    alpha, beta = call.number("alpha"), call.number("beta") if name in _TWO else 0.0
    return np.asarray(_SHAPED[name](call.array("x").astype(np.float64), alpha, beta)).astype(np.float32)


@operation("gelu")
def gelu(call: Call) -> Array:
    """`x` times the chance that a normal variable is below `x`, exactly or by one of two approximations."""
    x, mode = call.array("x").astype(np.float64), call.text("mode", "EXACT")
    match mode:
        case "EXACT":
            result = 0.5 * x * (1 + erf(x / math.sqrt(2)))
        case "TANH_APPROXIMATION":
            result = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case "SIGMOID_APPROXIMATION":
            result = x * _sigmoid(1.702 * x)
        case _:
            raise call.fail(f"mode is {mode!r:.60}")
    return np.asarray(result, np.float32)


@operation("softmax")
def softmax(call: Call) -> Array:
    """`exp(x)` over its sum along an axis."""
    x = call.array("x")
    return normalized_exponentials(x, call.axis(call.integer("axis", -1), x.ndim))


def normalized_exponentials(x: Array, axis: int) -> Array:
    """Softmax in double precision."""
    wide = x.astype(np.float64)
    wide -= wide.max(axis=axis, keepdims=True, initial=-np.inf)
    np.exp(wide, out=wide)
    wide /= wide.sum(axis=axis, keepdims=True)
    return wide.astype(np.float32)
