"""Rules of matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bitnet_onnx.training.autodiff._broadcast import reduced, scaled
from bitnet_onnx.training.autodiff._emitter import Dims, dims, int_attribute, rank, unsupported
from bitnet_onnx.training.autodiff._rules import operand, rule
from bitnet_onnx.training.autodiff._shapes import permutation
from bitnet_onnx.training.autodiff._tape import Tape


@dataclass(frozen=True, slots=True)
class _Operand:
    """What a product multiplies: `value`, with its last two axes swapped if `swapped`."""

    value: ir.Value
    swapped: bool

    @property
    def lengths(self) -> Dims:
        lengths = dims(self.value) or ()
        return (*lengths[:-2], lengths[-1], lengths[-2]) if self.swapped else lengths


@rule("MatMul")
def _matmul(tape: Tape, node: ir.Node) -> None:
    """`da = dy b^T`, `db = a^T dy`; an operand behind a transpose has its own gradient at once."""
    a, b, y = _operand(node, 0), _operand(node, 1), node.outputs[0]
    gradient = tape.gradient(y)
    if tape.wants(a.value):
        _left(tape, gradient, a, b, y)
    if tape.wants(b.value):
        _right(tape, gradient, a, b, y)


def _operand(node: ir.Node, index: int) -> _Operand:
    value = operand(node, index)
    if rank(node, value) < 2:
        raise unsupported(node, f"'{value.name}' is a vector")
    before = value.producer()
    if before is not None and before.op_type == "Transpose":
        count = rank(node, value)
        if permutation(before) == [*range(count - 2), count - 1, count - 2]:
            return _Operand(operand(before, 0), swapped=True)
    return _Operand(value, swapped=False)


def _left(tape: Tape, gradient: ir.Value, a: _Operand, b: _Operand, y: ir.Value) -> None:
    """`dy b^T`, or `b dy^T` for a swapped operand."""
    if len(b.lengths) == 2 and not a.swapped:
        width = b.lengths[1] if isinstance(b.lengths[1], int) else None
        if width is not None:
            flat = _rows(tape, gradient, dims(y), width)
            product = tape.op("Gemm", flat, b.value, attributes={"transB": int(not b.swapped)})
            before: Dims = (None, b.lengths[0])
            tape.give(a.value, tape.reshape(product, before, a.value))
            return
    if a.swapped:
        product = tape.op("MatMul", _view(tape, b, transposed=False), _swap(tape, gradient, len(dims(y) or ())))
    else:
        product = tape.op("MatMul", gradient, _view(tape, b, transposed=True))
    tape.give(a.value, _without_batch(tape, product, a.value, y))


def _right(tape: Tape, gradient: ir.Value, a: _Operand, b: _Operand, y: ir.Value) -> None:
    """`a^T dy`, or `dy^T a` for a swapped operand; rows of batch axes that `b` is repeated along are one product."""
    inner, width = b.lengths[-2:]
    count = len(dims(y) or ())
    folded = _folded(a.lengths, b.lengths)
    if isinstance(inner, int) and isinstance(width, int) and not a.swapped and (folded or len(b.lengths) == 2):
        count = count - folded if folded else 2
        kept = [0] * (count - 2)
        left = a.value if count == len(a.lengths) else tape.op("Reshape", a.value, tape.ints(*kept, -1, inner))
        right = gradient if count == len(dims(y) or ()) else tape.op("Reshape", gradient, tape.ints(*kept, -1, width))
        if b.swapped:
            left, right = right, left
        if count == 2:
            product = tape.op("Gemm", left, right, attributes={"transA": 1})
        else:
            product = tape.op("MatMul", _swap(tape, left, count), right)
        tape.give(b.value, tape.reshape(product, None, b.value) if folded else product)
        return
    if b.swapped:
        product = tape.op("MatMul", _swap(tape, gradient, count), _view(tape, a, transposed=False))
    else:
        product = tape.op("MatMul", _view(tape, a, transposed=True), gradient)
    tape.give(b.value, _without_batch(tape, product, b.value, y))


def _folded(a: Dims, b: Dims) -> int:
    """How many of the last batch axes of `b` are 1 where `a` has all of the product's axes."""
    if len(a) != len(b):
        return 0
    count = 0
    for left, right in zip(a[-3::-1], b[-3::-1], strict=True):
        if right != 1 or left == 1:
            break
        count += 1
    rest = zip(a[: -2 - count], b[: -2 - count], strict=True)
    return count if all(left == right and left is not None for left, right in rest) else 0


def _rows(tape: Tape, value: ir.Value, lengths: Dims | None, width: int) -> ir.Value:
    """A value as one matrix."""
    return value if lengths is not None and len(lengths) == 2 else tape.op("Reshape", value, tape.ints(-1, width))


def _view(tape: Tape, operand_: _Operand, *, transposed: bool) -> ir.Value:
    """An operand as the product reads it, or its transpose."""
    if operand_.swapped == transposed:
        return operand_.value
    return _swap(tape, operand_.value, len(operand_.lengths))


def _swap(tape: Tape, value: ir.Value, count: int) -> ir.Value:
    """ONNX Runtime takes the transpose into the product that reads it."""
    return tape.op("Transpose", value, attributes={"perm": [*range(count - 2), count - 1, count - 2]})


def _without_batch(tape: Tape, product: ir.Value, value: ir.Value, y: ir.Value) -> ir.Value:
    """Sum over the batch axes along which an operand was repeated."""
    batch, own = (dims(y) or ())[:-2], (dims(value) or ())
    whole = ir.Value(shape=ir.Shape([*batch, *own[-2:]]))
    return reduced(tape, product, value, whole)


@rule("Gemm")
def _gemm(tape: Tape, node: ir.Node) -> None:
    """`y = alpha a' b' + beta c` with `a'`, `b'` transposed as the node says."""
    a, b, y = operand(node, 0), operand(node, 1), node.outputs[0]
    c = node.inputs[2] if len(node.inputs) > 2 else None
    alpha, beta = (_float(node, name) for name in ("alpha", "beta"))
    swap_a, swap_b = int_attribute(node, "transA", 0), int_attribute(node, "transB", 0)
    gradient = tape.gradient(y)
    whole = scaled(tape, gradient, alpha, y)
    if tape.wants(a):
        left, right = (b, whole) if swap_a else (whole, b)
        swaps = {"transA": swap_b, "transB": 1} if swap_a else {"transB": 1 - swap_b}
        tape.give(a, tape.op("Gemm", left, right, attributes=swaps))
    if tape.wants(b):
        left, right = (whole, a) if swap_b else (a, whole)
        swaps = {"transA": 1, "transB": swap_a} if swap_b else {"transA": 1 - swap_a}
        tape.give(b, tape.op("Gemm", left, right, attributes=swaps))
    if c is not None and tape.wants(c):
        tape.give(c, scaled(tape, reduced(tape, gradient, c, y), beta, y))


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()
