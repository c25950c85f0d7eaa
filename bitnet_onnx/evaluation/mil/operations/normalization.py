"""Norms, computed in double precision and rounded once."""

from __future__ import annotations

from typing import Final

import numpy as np

from bitnet_onnx.evaluation.mil._call import Call, operation
from bitnet_onnx.evaluation.mil._types import Array

_CHANNELS: Final = 1


@operation("layer_norm", operands=("x", "gamma", "beta"))
def layer_norm(call: Call) -> Array:
    """`(x - mean) / sqrt(variance + epsilon) * gamma + beta` over `axes` (Ba, Kiros and Hinton, 2016)."""
    x = call.array("x")
    axes = call.axes(call.integers("axes", range(x.ndim)), x.ndim)
    shape = tuple(x.shape[axis] for axis in axes)
    wide = x.astype(np.float64)
    wide -= wide.mean(axis=axes, keepdims=True)
    # Hardware squares in the type of the input.
    squares = call.inner(np.square(wide).astype(np.float32), "x", "squares")
    wide /= np.sqrt(squares.mean(axis=axes, keepdims=True, dtype=np.float64) + call.number("epsilon", 1e-5))
    spread = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    for name in ("gamma", "beta"):
        factor = call.optional(name)
        if factor is None:
            continue
        if factor.shape != shape:
            raise call.fail(f"{name} is {list(factor.shape)}, expected {list(shape)}")
        wide = wide * factor.reshape(spread) if name == "gamma" else wide + factor.reshape(spread)
    return wide.astype(np.float32)


@operation("l2_norm")
def l2_norm(call: Call) -> Array:
    """`x / sqrt(sum(x^2) + epsilon)` over the last three dimensions."""
    x = call.array("x")
    if x.ndim < 3:
        raise call.fail(f"x has {x.ndim} dimensions, expected at least 3")
    squares = call.inner(np.square(x), "x", "squares").astype(np.float64)
    total = squares.sum(axis=(-3, -2, -1), keepdims=True)
    return np.asarray(x / np.sqrt(total + call.number("epsilon", 1e-6)), np.float32)


@operation("batch_norm", "instance_norm", operands=("x", "mean", "variance", "gamma", "beta"))
def channel_norm(call: Call) -> Array:
    """Norms of channels, by given statistics or by those of each instance."""
    x = call.array("x")
    if x.ndim < 3:
        raise call.fail(f"x has {x.ndim} dimensions, expected at least 3")
    wide = x.astype(np.float64)
    shape = (-1, *(1,) * (x.ndim - 2))

    def vector(name: str, default: float) -> Array:
        values = call.optional(name)
        if values is None:
            values = np.full(x.shape[_CHANNELS], default)
        if values.shape != (x.shape[_CHANNELS],):
            raise call.fail(f"{name} is {list(values.shape)}, expected {[x.shape[_CHANNELS]]}")
        return values.astype(np.float64).reshape(shape)

    if call.operation.type == "batch_norm":
        mean, variance = vector("mean", 0), vector("variance", 1)
    else:
        axes = tuple(range(2, x.ndim))
        mean, variance = wide.mean(axis=axes, keepdims=True), wide.var(axis=axes, keepdims=True)
    wide = (wide - mean) / np.sqrt(variance + call.number("epsilon", 1e-5))
    return (wide * vector("gamma", 1) + vector("beta", 0)).astype(np.float32)
