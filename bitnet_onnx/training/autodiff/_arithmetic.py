"""Rules of operators of several operands that broadcast."""

from __future__ import annotations

import onnx_ir as ir

from bitnet_onnx.training.autodiff._broadcast import reduced, same_shape
from bitnet_onnx.training.autodiff._emitter import readers, unsupported
from bitnet_onnx.training.autodiff._rules import operand, rule
from bitnet_onnx.training.autodiff._tape import Tape


@rule("Add", "Sum")
def _add(tape: Tape, node: ir.Node) -> None:
    y = node.outputs[0]
    gradient, full = tape.loose(y)
    for x in node.inputs:
        if x is not None and tape.wants(x):
            if same_shape(x, y):
                tape.give(x, gradient, full=full)
            else:
                tape.give(x, reduced(tape, tape.gradient(y), x, y))


@rule("Sub")
def _sub(tape: Tape, node: ir.Node) -> None:
    a, b, y = operand(node, 0), operand(node, 1), node.outputs[0]
    gradient, full = tape.loose(y)
    for x, minus in ((a, False), (b, True)):
        if not tape.wants(x):
            continue
        if same_shape(x, y):
            tape.give(x, tape.op("Neg", gradient) if minus else gradient, full=full)
        else:
            total = reduced(tape, tape.gradient(y), x, y)
            tape.give(x, tape.op("Neg", total) if minus else total)


@rule("Mul")
def _mul(tape: Tape, node: ir.Node) -> None:
    a, b, y = operand(node, 0), operand(node, 1), node.outputs[0]
    if _swish(tape, node, a, b) or _swish(tape, node, b, a):
        return
    gradient = _for_product(tape, y, a, b)
    if a is b:
        tape.give(a, tape.op("Mul", tape.op("Mul", gradient, tape.scalar(a, 2.0)), a))
        return
    for x, other in ((a, b), (b, a)):
        if tape.wants(x):
            tape.give(x, reduced(tape, tape.op("Mul", gradient, other), x, y))


@rule("Div")
def _div(tape: Tape, node: ir.Node) -> None:
    a, b, y = operand(node, 0), operand(node, 1), node.outputs[0]
    gradient = _for_product(tape, y, a, b)
    quotient = tape.op("Div", gradient, b)
    if tape.wants(a):
        tape.give(a, reduced(tape, quotient, a, y))
    if tape.wants(b):
        tape.give(b, tape.op("Neg", reduced(tape, tape.op("Mul", quotient, y), b, y)))


@rule("Max", "Min")
def _extreme(tape: Tape, node: ir.Node) -> None:
    """The operand that wins has the gradient, the first where both are equal."""
    y = node.outputs[0]
    if len(node.inputs) == 1:
        gradient, full = tape.loose(y)
        tape.give(operand(node, 0), gradient, full=full)
        return
    if len(node.inputs) > 2:
        raise unsupported(node, "it has more than two operands")
    a, b = operand(node, 0), operand(node, 1)
    first = tape.op("GreaterOrEqual" if node.op_type == "Max" else "LessOrEqual", a, b)
    _choose(tape, y, first, a, b)


@rule("Where")
def _where(tape: Tape, node: ir.Node) -> None:
    _choose(tape, node.outputs[0], operand(node, 0), operand(node, 1), operand(node, 2))


def _choose(tape: Tape, y: ir.Value, first: ir.Value, a: ir.Value, b: ir.Value) -> None:
    gradient = tape.gradient(y)
    zero = tape.scalar(y, 0.0)
    if tape.wants(a):
        tape.give(a, reduced(tape, tape.op("Where", first, gradient, zero), a, y))
    if tape.wants(b):
        tape.give(b, reduced(tape, tape.op("Where", first, zero, gradient), b, y))


def _for_product(tape: Tape, y: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """A gradient that has its full shape once it is multiplied by either operand."""
    return tape.loose(y)[0] if same_shape(a, y) and same_shape(b, y) else tape.gradient(y)


def _swish(tape: Tape, node: ir.Node, x: ir.Value, gate: ir.Value) -> bool:
    """`y = x s(x)` at once: `dy/dx = s + y (1 - s)`."""
    sigmoid = gate.producer()
    if (
        sigmoid is None
        or sigmoid.op_type != "Sigmoid"
        or sigmoid.inputs[0] is not x
        or len(readers(gate)) != 1
        or gate.is_graph_output()
    ):
        return False
    y = node.outputs[0]
    gradient, _ = tape.loose(y)
    slope = tape.op("Add", gate, tape.op("Sub", y, tape.op("Mul", y, gate)))
    tape.give(x, tape.op("Mul", gradient, slope))
    return True
