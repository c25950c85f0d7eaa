"""Gradients of operands that an operator broadcasts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bitnet_onnx.training.autodiff._emitter import Dims, dims
from bitnet_onnx.training.autodiff._tape import Tape


def reduced(tape: Tape, gradient: ir.Value, value: ir.Value, output: ir.Value) -> ir.Value:
    """Sum a gradient of an operator's output over the axes along which an input was repeated.

    Args:
        gradient: of the shape of `output`.
        value: the input.
        output: of the operator.
    """
    before, after = dims(output), dims(value)
    lead_and_ones = None if before is None or after is None else _repeated(before, after)
    if before is None or after is None or lead_and_ones is None:
        return _reduced_at_run_time(tape, gradient, value)
    lead, ones = lead_and_ones
    if lead and ones:
        total = tape.op("ReduceSum", gradient, tape.ints(*range(lead), *ones), attributes={"keepdims": 0})
        return tape.reshape(total, None, value)
    if lead:
        return tape.op("ReduceSum", gradient, tape.ints(*range(lead)), attributes={"keepdims": 0})
    if ones:
        return tape.op("ReduceSum", gradient, tape.ints(*ones), attributes={"keepdims": 1})
    return gradient


def same_shape(value: ir.Value, output: ir.Value) -> bool:
    """Whether an input surely has the shape of an operator's output."""
    before, after = dims(output), dims(value)
    return before is not None and before == after and None not in before


def _repeated(before: Dims, after: Dims) -> tuple[int, list[int]] | None:
    """How many axes were put in front, and which other ones were repeated; None where only run time knows."""
    lead = len(before) - len(after)
    ones: list[int] = []
    for axis, length in enumerate(after, start=lead):
        if length == 1 and before[axis] != 1:
            ones.append(axis)
        elif not isinstance(length, int) and (length is None or length != before[axis]):
            return None
    return lead, ones


def _reduced_at_run_time(tape: Tape, gradient: ir.Value, value: ir.Value) -> ir.Value:
    """The same where shapes are not known: axes are compared when the graph runs."""
    shape, whole = tape.op("Shape", value), tape.op("Shape", gradient)
    missing = tape.op("Sub", tape.op("Shape", whole), tape.op("Shape", shape))
    ones = tape.op("Expand", tape.ints(1), missing)
    padded = tape.op("Concat", ones, shape, attributes={"axis": 0})
    differs = tape.op("Not", tape.op("Equal", padded, whole))
    axes = tape.op("Reshape", tape.op("NonZero", differs), tape.ints(-1))
    total = tape.op("ReduceSum", gradient, axes, attributes={"keepdims": 1, "noop_with_empty_axes": 1})
    return tape.op("Reshape", total, shape)


def scaled(tape: Tape, gradient: ir.Value, factor: float, like: ir.Value) -> ir.Value:
    """A gradient times a constant."""
    return gradient if factor == 1 else tape.op("Mul", gradient, tape.scalar(like, factor))


def axes_of(axes: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """Axes counted from the front, in order."""
    return sorted(int(axis) % count for axis in axes)
