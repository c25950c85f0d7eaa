"""Rules of operators that reduce axes."""

from __future__ import annotations

import math

import onnx_ir as ir

from bitnet_onnx.training.autodiff._broadcast import axes_of
from bitnet_onnx.training.autodiff._emitter import constant_of, dims, int_attribute, rank, unsupported
from bitnet_onnx.training.autodiff._rules import first_input, rule
from bitnet_onnx.training.autodiff._tape import Tape


@rule("ReduceSum", "ReduceMean")
def _reduce(tape: Tape, node: ir.Node) -> None:
    x, y = first_input(node), node.outputs[0]
    count = rank(node, x)
    axes = _axes(node, count)
    if not axes:
        gradient, full = tape.loose(y)
        tape.give(x, gradient, full=full)
        return
    dropped = not int_attribute(node, "keepdims", 1) and len(axes) < count
    gradient = tape.gradient(y) if dropped else tape.loose(y)[0]
    if node.op_type == "ReduceMean":
        gradient = tape.op("Mul", gradient, _share(tape, x, axes))
    if dropped:
        gradient = tape.op("Unsqueeze", gradient, tape.ints(*axes))
    tape.give(x, gradient, full=False)


def _axes(node: ir.Node, count: int) -> list[int]:
    """The axes that a node reduces."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return axes_of(attribute.as_ints(), count)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = constant_of(node.inputs[1])
        if axes is None:
            raise unsupported(node, "its axes are not constant")
        if axes.size:
            return axes_of(axes, count)
    return [] if int_attribute(node, "noop_with_empty_axes", 0) else list(range(count))


def _share(tape: Tape, x: ir.Value, axes: list[int]) -> ir.Value:
    """One over the number of elements that a mean is of."""
    lengths = [(dims(x) or ())[axis] for axis in axes]
    known = [length for length in lengths if isinstance(length, int)]
    if len(known) == len(lengths):
        return tape.scalar(x, 1 / max(math.prod(known), 1))
    chosen = tape.op("Gather", tape.shape(x), tape.ints(*axes))
    elements = tape.op("ReduceProd", chosen, attributes={"keepdims": 0})
    kind = (x.dtype or ir.DataType.FLOAT).value
    return tape.op("Reciprocal", tape.op("Cast", elements, attributes={"to": kind}))
