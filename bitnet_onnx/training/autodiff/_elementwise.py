"""Rules of operators that map each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import onnx_ir as ir

from bitnet_onnx.training.autodiff._broadcast import scaled
from bitnet_onnx.training.autodiff._emitter import constant_of, unsupported
from bitnet_onnx.training.autodiff._rules import first_input, operand, rule
from bitnet_onnx.training.autodiff._tape import Tape

#: Of the cubic term in the tanh approximation of GELU (Hendrycks and Gimpel, arXiv:1606.08415).
_CUBIC: Final = 0.044715


def _derivative(*op_types: str) -> Callable[[Callable[[Tape, ir.Value, ir.Value], ir.Value]], None]:
    """Enter the rule that multiplies by a function of input and output of the input's shape."""

    def enter(function: Callable[[Tape, ir.Value, ir.Value], ir.Value]) -> None:
        def apply(tape: Tape, node: ir.Node) -> None:
            x, y = first_input(node), node.outputs[0]
            gradient, _ = tape.loose(y)
            tape.give(x, tape.op("Mul", gradient, function(tape, x, y)))

        rule(*op_types)(apply)

    return enter


@rule("Identity")
def _identity(tape: Tape, node: ir.Node) -> None:
    gradient, full = tape.loose(node.outputs[0])
    tape.give(first_input(node), gradient, full=full)


@rule("Neg")
def _neg(tape: Tape, node: ir.Node) -> None:
    gradient, full = tape.loose(node.outputs[0])
    tape.give(first_input(node), tape.op("Neg", gradient), full=full)


@rule("Cast")
def _cast(tape: Tape, node: ir.Node) -> None:
    x = first_input(node)
    gradient, full = tape.loose(node.outputs[0])
    if x.dtype is None:
        raise unsupported(node, f"the type of '{x.name}' is not known")
    tape.give(x, tape.op("Cast", gradient, attributes={"to": x.dtype.value}), full=full)


@rule("Reciprocal")
def _reciprocal(tape: Tape, node: ir.Node) -> None:
    y = node.outputs[0]
    gradient, _ = tape.loose(y)
    tape.give(first_input(node), tape.op("Mul", tape.op("Neg", gradient), tape.op("Mul", y, y)))


@rule("Sqrt")
def _sqrt(tape: Tape, node: ir.Node) -> None:
    y = node.outputs[0]
    gradient, _ = tape.loose(y)
    tape.give(first_input(node), tape.op("Div", scaled(tape, gradient, 0.5, y), y))


@rule("Log")
def _log(tape: Tape, node: ir.Node) -> None:
    gradient, _ = tape.loose(node.outputs[0])
    tape.give(first_input(node), tape.op("Div", gradient, first_input(node)))


@rule("Pow")
def _pow(tape: Tape, node: ir.Node) -> None:
    x, exponent = operand(node, 0), operand(node, 1)
    if tape.wants(exponent):
        raise unsupported(node, "its exponent depends on a parameter")
    gradient, _ = tape.loose(node.outputs[0])
    power = constant_of(exponent)
    if power is None or power.size != 1:
        raise unsupported(node, "its exponent is not a constant number")
    number = float(power.reshape(()))
    scale = scaled(tape, gradient, number, x)
    if number == 1:
        gradient = tape.gradient(node.outputs[0])
    elif number == 2:
        gradient = tape.op("Mul", scale, x)
    elif number == 3:
        gradient = tape.op("Mul", scale, tape.op("Mul", x, x))
    else:
        gradient = tape.op("Mul", scale, tape.op("Pow", x, tape.scalar(exponent, number - 1)))
    tape.give(x, gradient)


@rule("Clip")
def _clip(tape: Tape, node: ir.Node) -> None:
    """Elements that the limits did not change pass, those on a limit too."""
    if any(tape.wants(limit) for limit in node.inputs[1:]):
        raise unsupported(node, "its limits depend on a parameter")
    x, y = first_input(node), node.outputs[0]
    gradient = tape.gradient(y)
    tape.give(x, tape.op("Where", tape.op("Equal", x, y), gradient, tape.scalar(x, 0.0)))


@_derivative("Abs")
def _abs(tape: Tape, x: ir.Value, _y: ir.Value) -> ir.Value:
    return tape.op("Sign", x)


@_derivative("Relu")
def _relu(tape: Tape, _x: ir.Value, y: ir.Value) -> ir.Value:
    return tape.op("Sign", y)


@_derivative("Exp")
def _exp(_tape: Tape, _x: ir.Value, y: ir.Value) -> ir.Value:
    return y


@_derivative("Sigmoid")
def _sigmoid(tape: Tape, _x: ir.Value, y: ir.Value) -> ir.Value:
    return tape.op("Sub", y, tape.op("Mul", y, y))


@_derivative("Tanh")
def _tanh(tape: Tape, x: ir.Value, y: ir.Value) -> ir.Value:
    return tape.op("Sub", tape.scalar(x, 1.0), tape.op("Mul", y, y))


@_derivative("Softplus")
def _softplus(tape: Tape, x: ir.Value, _y: ir.Value) -> ir.Value:
    return tape.op("Sigmoid", x)


@_derivative("Sin")
def _sin(tape: Tape, x: ir.Value, _y: ir.Value) -> ir.Value:
    return tape.op("Cos", x)


@_derivative("Cos")
def _cos(tape: Tape, x: ir.Value, _y: ir.Value) -> ir.Value:
    return tape.op("Neg", tape.op("Sin", x))


@_derivative("Erf")
def _erf(tape: Tape, x: ir.Value, _y: ir.Value) -> ir.Value:
    bell = tape.op("Exp", tape.op("Neg", tape.op("Mul", x, x)))
    return tape.op("Mul", bell, tape.scalar(x, 2 / math.sqrt(math.pi)))


@rule("Gelu")
def _gelu(tape: Tape, node: ir.Node) -> None:
    x = first_input(node)
    approximate = node.attributes.get("approximate")
    slope = _gelu_tanh if approximate is not None and approximate.as_string() == "tanh" else _gelu_erf
    gradient, _ = tape.loose(node.outputs[0])
    tape.give(x, tape.op("Mul", gradient, slope(tape, x)))


def _gelu_erf(tape: Tape, x: ir.Value) -> ir.Value:
    """`Phi(x) + x phi(x)`."""
    erf = tape.op("Erf", tape.op("Mul", x, tape.scalar(x, math.sqrt(0.5))))
    share = tape.op("Mul", tape.op("Add", erf, tape.scalar(x, 1.0)), tape.scalar(x, 0.5))
    bell = tape.op("Exp", tape.op("Mul", tape.op("Mul", x, x), tape.scalar(x, -0.5)))
    return tape.op("Add", share, tape.op("Mul", tape.op("Mul", bell, x), tape.scalar(x, 1 / math.sqrt(2 * math.pi))))


def _gelu_tanh(tape: Tape, x: ir.Value) -> ir.Value:
    """`(1 + t) / 2 + x (1 - t^2) u' / 2` with `t = tanh(u)`, `u = sqrt(2 / pi) (x + 0.044715 x^3)`."""
    root = math.sqrt(2 / math.pi)
    square = tape.op("Mul", x, x)
    one = tape.scalar(x, 1.0)
    inner = tape.op("Add", tape.op("Mul", square, tape.scalar(x, root * _CUBIC)), tape.scalar(x, root))
    tanh = tape.op("Tanh", tape.op("Mul", inner, x))
    inner_slope = tape.op("Add", tape.op("Mul", square, tape.scalar(x, 3 * root * _CUBIC)), tape.scalar(x, root))
    tail = tape.op("Mul", tape.op("Mul", tape.op("Sub", one, tape.op("Mul", tanh, tanh)), inner_slope), x)
    return tape.op("Mul", tape.op("Add", tape.op("Add", tanh, tail), one), tape.scalar(x, 0.5))
