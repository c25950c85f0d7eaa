"""Rules of Softmax and LogSoftmax."""

from __future__ import annotations

import onnx_ir as ir

from bitnet_onnx.training.autodiff._emitter import int_attribute, rank, readers
from bitnet_onnx.training.autodiff._rules import first_input, rule
from bitnet_onnx.training.autodiff._tape import Tape


@rule("Softmax")
def _softmax(tape: Tape, node: ir.Node) -> None:
    """`dx = y (dy - sum(dy y))`.

    Attention weights `y` that only `o = y v` reads have `sum(dy y) = sum(do o)`, which is over the features of a head
    instead of all keys (FlashAttention, arXiv:2205.14135, equation 4 of its appendix).
    """
    x, y = first_input(node), node.outputs[0]
    axis = int_attribute(node, "axis", -1)
    gradient, product = tape.gradient(y), _only_product(y, axis, rank(node, y))
    if product is None:
        total = tape.op("ReduceSum", tape.op("Mul", gradient, y), tape.ints(axis), attributes={"keepdims": 1})
    else:
        along = tape.op("Mul", tape.gradient(product), product)
        total = tape.op("ReduceSum", along, tape.ints(-1), attributes={"keepdims": 1})
    tape.give(x, tape.op("Mul", tape.op("Sub", gradient, total), y))


def _only_product(y: ir.Value, axis: int, count: int) -> ir.Value | None:
    """The product that alone reads rows of weights, of the rank that they have."""
    uses = readers(y)
    if axis % count != count - 1 or len(uses) != 1 or y.is_graph_output():
        return None
    node, index = uses[0]
    output = node.outputs[0]
    same = output.shape is not None and y.shape is not None and tuple(output.shape)[:-1] == tuple(y.shape)[:-1]
    return output if node.op_type == "MatMul" and node.domain == "" and index == 0 and same else None


@rule("LogSoftmax")
def _log_softmax(tape: Tape, node: ir.Node) -> None:
    """`dx = dy - exp(y) sum(dy)`."""
    x, y = first_input(node), node.outputs[0]
    axis = int_attribute(node, "axis", -1)
    gradient = tape.gradient(y)
    total = tape.op("ReduceSum", gradient, tape.ints(axis), attributes={"keepdims": 1})
    tape.give(x, tape.op("Sub", gradient, tape.op("Mul", tape.op("Exp", y), total)))
