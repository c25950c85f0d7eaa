"""Rule of LayerNormalization."""

from __future__ import annotations

import onnx_ir as ir

from bitnet_onnx.training.autodiff._broadcast import reduced
from bitnet_onnx.training.autodiff._emitter import int_attribute, rank, unsupported
from bitnet_onnx.training.autodiff._rules import operand, rule
from bitnet_onnx.training.autodiff._tape import Tape


@rule("LayerNormalization")
def _layer_normalization(tape: Tape, node: ir.Node) -> None:
    """`dx = r (h - mean(h) - n mean(h n))` with `n = (x - mean) r`, `h = dy scale`, over the normalized axes."""
    x, scale, y = operand(node, 0), operand(node, 1), node.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    mean, inverse = node.outputs[1], node.outputs[2]
    if tape.has_gradient(mean) or tape.has_gradient(inverse):
        raise unsupported(node, "its mean or its deviation is read")
    count = rank(node, x)
    axes = range(int_attribute(node, "axis", -1) % count, count)
    gradient = tape.gradient(y)
    normal = tape.op("Mul", tape.op("Sub", x, mean), inverse)
    if tape.wants(scale):
        tape.give(scale, reduced(tape, tape.op("Mul", gradient, normal), scale, y))
    if bias is not None and tape.wants(bias):
        tape.give(bias, reduced(tape, gradient, bias, y))
    if tape.wants(x):
        inner = tape.op("Mul", gradient, scale)
        level = tape.mean(inner, axes)
        tilt = tape.mean(tape.op("Mul", inner, normal), axes)
        rest = tape.op("Sub", tape.op("Sub", inner, level), tape.op("Mul", normal, tilt))
        tape.give(x, tape.op("Mul", rest, inverse))
