"""Rules of operators that move elements or repeat them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitnet_onnx.training.autodiff._broadcast import reduced
from bitnet_onnx.training.autodiff._emitter import constant_of, dims, int_attribute, rank, unsupported
from bitnet_onnx.training.autodiff._rules import first_input, operand, rule
from bitnet_onnx.training.autodiff._tape import Tape


@rule("Reshape", "Squeeze", "Unsqueeze", "Flatten")
def _reshape(tape: Tape, node: ir.Node) -> None:
    x, y = first_input(node), node.outputs[0]
    tape.give(x, tape.reshape(tape.gradient(y), dims(y), x))


@rule("Expand")
def _expand(tape: Tape, node: ir.Node) -> None:
    x, y = first_input(node), node.outputs[0]
    tape.give(x, reduced(tape, tape.gradient(y), x, y))


@rule("Transpose")
def _transpose(tape: Tape, node: ir.Node) -> None:
    x = first_input(node)
    order = permutation(node)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    tape.give(x, tape.op("Transpose", tape.gradient(node.outputs[0]), attributes={"perm": inverse}))


def permutation(node: ir.Node) -> list[int]:
    """What a Transpose does to axes."""
    attribute = node.attributes.get("perm")
    return list(range(rank(node, first_input(node))))[::-1] if attribute is None else list(attribute.as_ints())


@rule("Trilu")
def _trilu(tape: Tape, node: ir.Node) -> None:
    attributes = {"upper": int_attribute(node, "upper", 1)}
    gradient = tape.gradient(node.outputs[0])
    tape.give(first_input(node), tape.op("Trilu", gradient, *node.inputs[1:], attributes=attributes))


@rule("Pad")
def _pad(tape: Tape, node: ir.Node) -> None:
    """What was put on is cut off: negative pads do it where not all are known to be positive."""
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        raise unsupported(node, f"its mode is '{mode.as_string()}', not 'constant'")
    if len(node.inputs) > 2 and tape.wants(node.inputs[2]):
        raise unsupported(node, "its padding depends on a parameter")
    x, gradient = first_input(node), tape.gradient(node.outputs[0])
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    known = constant_of(operand(node, 1))
    if known is not None and (known >= 0).all():
        starts = tape.ints(*known[: known.size // 2].tolist())
        shape = tape.shape(x) if axes is None else tape.op("Gather", tape.shape(x), axes)
        every = tape.ints(*range(known.size // 2)) if axes is None else axes
        tape.give(x, tape.op("Slice", gradient, starts, tape.op("Add", starts, shape), every))
        return
    pads = tape.op("Neg", operand(node, 1))
    tape.give(x, tape.op("Pad", gradient, pads, None, axes) if axes is not None else tape.op("Pad", gradient, pads))


@rule("Concat")
def _concat(tape: Tape, node: ir.Node) -> None:
    y = node.outputs[0]
    gradient = tape.gradient(y)
    axis = int_attribute(node, "axis", 0) % rank(node, y)
    at: int | None = 0
    start = tape.ints(0)
    for x in node.inputs:
        if x is None:
            continue
        length = (dims(x) or (None,) * (axis + 1))[axis]
        if at is not None and isinstance(length, int):
            stop, at = tape.ints(at + length), at + length
        else:
            stop = tape.op("Add", start, tape.op("Gather", tape.shape(x), tape.ints(axis)))
            at = None
        if tape.wants(x):
            tape.give(x, tape.op("Slice", gradient, start, stop, tape.ints(axis)))
        start = stop


@rule("Split")
def _split(tape: Tape, node: ir.Node) -> None:
    """Outputs that nobody reads have zeros."""
    x = first_input(node)
    axis = int_attribute(node, "axis", 0) % rank(node, x)
    lengths = [None if y.shape is None else (dims(y) or ())[axis] for y in node.outputs]
    known = [length for length in lengths if isinstance(length, int)]
    if len(known) == len(lengths) and isinstance((dims(x) or ())[axis], int):
        at = 0
        for y, length in zip(node.outputs, known, strict=True):
            if tape.has_gradient(y) and length:
                tape.give_piece(x, axis, at, at + length, tape.gradient(y))
            at += length
        return
    parts = [tape.gradient(y) for y in node.outputs]
    tape.give(x, tape.op("Concat", *parts, attributes={"axis": axis}))


@rule("Slice")
def _slice(tape: Tape, node: ir.Node) -> None:
    """Ranges of one static axis are pieces; anything else is scattered back, axis by axis."""
    x, y = first_input(node), node.outputs[0]
    count = rank(node, x)
    starts = constant_of(node.inputs[1])
    stops = constant_of(node.inputs[2])
    axes = _optional(node, 3)
    steps = _optional(node, 4)
    where = range(count) if axes is None else constant_of(axes)
    stride = None if steps is None else constant_of(steps)
    if where is None or (steps is not None and stride is None):
        raise unsupported(node, "its axes or steps are not constant")
    lengths = dims(x) or ()
    whole = [int(axis) % count for axis in where] if axes is not None else list(range(count))
    if starts is not None:
        whole = whole[: starts.size]
    if len(whole) == 1 and starts is not None and stops is not None and (stride is None or int(stride[0]) == 1):
        length = lengths[whole[0]]
        if isinstance(length, int):
            start, stop, _ = slice(int(starts[0]), int(stops[0])).indices(length)
            if stop > start:
                tape.give_piece(x, whole[0], start, stop, tape.gradient(y))
            return
    gradient = tape.gradient(y)
    shape = tape.shape(x)
    for number, axis in enumerate(whole):
        place = tape.ints(number)
        start_here, stop_here = (
            tape.op("Reshape", tape.op("Gather", operand(node, i), place), tape.ints(1)) for i in (1, 2)
        )
        step = tape.ints(1 if stride is None else int(stride[number]))
        length_here = tape.op("Reshape", tape.op("Gather", shape, tape.ints(axis)), tape.ints())
        every = tape.op("Range", _int(tape, 0), length_here, _int(tape, 1))
        chosen = tape.op("Slice", every, start_here, stop_here, tape.ints(0), step)
        gradient = put_back(tape, gradient, chosen, axis, count, length_here, x)
    tape.give(x, gradient)


def put_back(
    tape: Tape, gradient: ir.Value, chosen: ir.Value, axis: int, count: int, length: ir.Value, like: ir.Value
) -> ir.Value:
    """Lay what was chosen along one axis back among zeros, adding up what was chosen more than once.

    Args:
        tape: that it is written to.
        gradient: of rank `count`.
        chosen: int64 `[n]`, `n` the length of the gradient's axis.
        axis: along which.
        count: rank.
        length: int64 scalar, of the result's axis.
        like: a value of the type.
    """
    order = [axis, *(i for i in range(count) if i != axis)]
    front = gradient if axis == 0 else tape.op("Transpose", gradient, attributes={"perm": order})
    rest = tape.op("Slice", tape.op("Shape", front), tape.ints(1), tape.ints(count))
    shape = tape.op("Concat", tape.op("Reshape", length, tape.ints(1)), rest, attributes={"axis": 0})
    zeros = tape.op("Expand", tape.scalar(like, 0.0), shape)
    rows = tape.op("Unsqueeze", chosen, tape.ints(-1))
    laid = tape.op("ScatterND", zeros, rows, front, attributes={"reduction": "add"})
    if axis == 0:
        return laid
    inverse = sorted(range(count), key=order.__getitem__)
    return tape.op("Transpose", laid, attributes={"perm": inverse})


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _int(tape: Tape, number: int) -> ir.Value:
    """An int64 scalar."""
    return tape.constant(np.array(number, np.int64))
