"""Reductions over axes."""

from __future__ import annotations

from typing import Final

import numpy as np

from bitnet_onnx.evaluation.mil._call import Call, Result, is_float, operation
from bitnet_onnx.evaluation.mil._types import CAST_NAMES, Array, Kind

_LOGARITHMS: Final = {"reduce_log_sum", "reduce_log_sum_exp"}
_SQUARES: Final = {"reduce_l2_norm", "reduce_sum_square"}


@operation(
    "reduce_sum",
    "reduce_mean",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_l1_norm",
    "reduce_l2_norm",
    "reduce_log_sum",
    "reduce_log_sum_exp",
    "reduce_sum_square",
)
def reduce(call: Call) -> Array:
    """Over `axes`, or over all of them."""
    x, name = call.array("x"), call.operation.type
    axes = call.axes(call.integers("axes", range(x.ndim)), x.ndim)
    keep = call.boolean("keep_dims")
    if name in {"reduce_max", "reduce_min"}:
        if any(x.shape[axis] == 0 for axis in axes):
            raise call.fail(f"the extreme of nothing: x is {list(x.shape)}")
        return np.asarray((np.max if name == "reduce_max" else np.min)(x, axis=axes, keepdims=keep))
    if not is_float(x):
        return _integers(call, x, axes, keep)
    if name in _SQUARES:
        # What no type of an output shows: hardware squares in the type of the input.
        x = call.inner(np.square(x), "x", "squares")
    wide = x.astype(np.float64)
    if name == "reduce_l1_norm":
        wide = np.abs(wide)
    peak = 0.0
    if name == "reduce_log_sum_exp":
        peak = wide.max(axis=axes, keepdims=True, initial=-np.inf)
        wide = np.exp(wide - peak)
    result = np.asarray((np.prod if name == "reduce_prod" else np.sum)(wide, axis=axes, keepdims=True))
    if name == "reduce_mean":
        result = call.inner(result.astype(np.float32), "x", "sum") / np.prod([x.shape[axis] for axis in axes])
    if name == "reduce_l2_norm":
        result = np.sqrt(result)
    if name in _LOGARITHMS:
        result = np.log(result) + peak
    return (result if keep else np.squeeze(result, axis=axes)).astype(np.float32)


def _integers(call: Call, x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    wide = x.astype(np.int64)
    match call.operation.type:
        case "reduce_sum":
            result = wide.sum(axis=axes, keepdims=keep)
        case "reduce_prod":
            result = wide.prod(axis=axes, keepdims=keep)
        case "reduce_sum_square":
            result = np.square(wide).sum(axis=axes, keepdims=keep)
        case "reduce_l1_norm":
            result = np.abs(wide).sum(axis=axes, keepdims=keep)
        case _:
            raise call.fail(f"x is {call.element('x')}, expected floats")
    return np.asarray(result).astype(x.dtype)


@operation("reduce_argmax", "reduce_argmin", result=Result.DECLARED)
def index_of_extreme(call: Call) -> Array:
    """Where the first of the largest or smallest elements stands along an axis."""
    x = call.array("x")
    axis = call.axis(call.integer("axis", -1), x.ndim)
    if not x.shape[axis]:
        raise call.fail(f"the extreme of nothing: x is {list(x.shape)}")
    find = np.argmax if call.operation.type == "reduce_argmax" else np.argmin
    target = CAST_NAMES.get(call.text("output_dtype", "int32"))
    if target is None or target.kind is not Kind.INTEGER:
        raise call.fail(f"output_dtype is {call.text('output_dtype')!r:.40}")
    return np.asarray(find(x, axis=axis, keepdims=call.boolean("keep_dims"))).astype(target.computed)


@operation("cumsum")
def cumulative_sum(call: Call) -> Array:
    """Sums of all elements up to each along an axis."""
    x = call.array("x")
    axis = call.axis(call.integer("axis", 0), x.ndim)
    if call.boolean("reverse"):
        x = np.flip(x, axis)
    wide = np.cumsum(x, axis=axis, dtype=np.float64 if is_float(x) else np.int64)
    if call.boolean("exclusive"):
        wide = np.roll(wide, 1, axis)
        first = [slice(None)] * x.ndim
        first[axis] = slice(0, 1)
        wide[tuple(first)] = 0
    if call.boolean("reverse"):
        wide = np.flip(wide, axis)
    return wide.astype(x.dtype)
