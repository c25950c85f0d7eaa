"""Rules of operators that look elements up."""

from __future__ import annotations

import onnx_ir as ir

from bitnet_onnx.training.autodiff._emitter import Attributes, constant_of, dims, int_attribute, rank, unsupported
from bitnet_onnx.training.autodiff._rules import operand, rule
from bitnet_onnx.training.autodiff._shapes import put_back
from bitnet_onnx.training.autodiff._tape import Tape


@rule("Gather")
def _gather(tape: Tape, node: ir.Node) -> None:
    """Rows of a table are added where they came from; along other axes the same behind transposes."""
    x, indices, y = operand(node, 0), operand(node, 1), node.outputs[0]
    count = rank(node, x)
    axis = int_attribute(node, "axis", 0) % count
    gradient = tape.gradient(y)
    if axis == 0:
        tape.give_rows(x, tape.op("Unsqueeze", indices, tape.ints(-1)), gradient)
        return
    numbers, length = constant_of(indices), (dims(x) or ())[axis]
    if numbers is not None and isinstance(length, int) and numbers.ndim == 0:
        at = int(numbers) % length
        tape.give_piece(x, axis, at, at + 1, tape.op("Unsqueeze", gradient, tape.ints(axis)))
        return
    # The indices' axes become one.
    shape = tape.shape(x)
    before = tape.op("Slice", shape, tape.ints(0), tape.ints(axis))
    after = tape.op("Slice", shape, tape.ints(axis + 1), tape.ints(count))
    flat = tape.op("Concat", before, tape.ints(-1), after, attributes={"axis": 0})
    whole = tape.op("Gather", shape, tape.ints(axis))
    rows = tape.op("Reshape", indices, tape.ints(-1))
    tape.give(x, put_back(tape, tape.op("Reshape", gradient, flat), rows, axis, count, whole, x))


@rule("GatherElements")
def _gather_elements(tape: Tape, node: ir.Node) -> None:
    x, indices = operand(node, 0), operand(node, 1)
    attributes: Attributes = {"axis": int_attribute(node, "axis", 0), "reduction": "add"}
    gradient = tape.gradient(node.outputs[0])
    tape.give(x, tape.op("ScatterElements", tape.zeros(x), indices, gradient, attributes=attributes))


@rule("GatherND")
def _gather_nd(tape: Tape, node: ir.Node) -> None:
    if int_attribute(node, "batch_dims", 0):
        raise unsupported(node, "it has batch_dims")
    tape.give_rows(operand(node, 0), operand(node, 1), tape.gradient(node.outputs[0]))
