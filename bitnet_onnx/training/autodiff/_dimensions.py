"""Symbols for lengths of axes that ONNX's shape inference leaves open, so that equal ones are seen to be equal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Final

import onnx_ir as ir

from bitnet_onnx.training.autodiff._emitter import Dims, constant_of, dims, int_attribute
from bitnet_onnx.training.autodiff._sizes import SizeTable, product

_UNARY: Final = frozenset(
    {"Abs", "Neg", "Sqrt", "Reciprocal", "Exp", "Log", "Sigmoid", "Tanh", "Relu", "Erf", "Gelu", "Sin", "Cos"}
    | {"Softplus", "Sign", "Round", "Floor", "Ceil", "Not", "Softmax", "LogSoftmax", "Clip", "Cast", "Identity"}
    | {"Trilu", "LayerNormalization"}
)
_BROADCAST: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Where", "And", "Or", "Equal"}
    | {"Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
)


def name_lengths(graph: ir.Graph) -> None:
    """Give every axis of known rank a number or a symbol: a product of the inputs' symbols, or one of its own.

    The inputs' symbols are taken as they stand: two axes of one name have one length. Other symbols go.
    """
    fresh = 0
    for value in graph.inputs:
        fresh = _fill(value, None, fresh)
    declared = {length for value in graph.inputs for length in dims(value) or () if isinstance(length, str)}
    for node in graph:
        for value in node.outputs:
            lengths = dims(value)
            if lengths is not None:
                value.shape = ir.Shape([d if isinstance(d, int) or d in declared else None for d in lengths])
    sizes = SizeTable()
    for node in graph:
        found = _outputs(node, sizes) if node.domain == "" else []
        for output, lengths in zip_longest(node.outputs, found[: len(node.outputs)]):
            fresh = _fill(output, lengths, fresh)
        if node.domain == "":
            sizes.read(node)


def _fill(value: ir.Value, found: Dims | None, fresh: int) -> int:
    """Put what was found where nothing was known, and then new symbols; returns how many there are."""
    lengths = dims(value)
    if lengths is None or None not in lengths:
        return fresh
    if found is None or len(found) != len(lengths):
        found = lengths
    named: list[int | str] = []
    for own, other in zip(lengths, found, strict=True):
        length = other if own is None else own
        if length is None:
            length, fresh = f"?{fresh}", fresh + 1
        named.append(length)
    value.shape = ir.Shape(named)
    return fresh


def _outputs(node: ir.Node, sizes: SizeTable) -> list[Dims | None]:
    """What a node's inputs say of its outputs' shapes."""
    inputs = [() if value is None else dims(value) for value in node.inputs]
    if not inputs or None in inputs:
        return []
    if node.op_type in _UNARY:
        return [inputs[0]]
    if node.op_type in _BROADCAST:
        return [_broadcast(inputs)]
    sized = _SIZED.get(node.op_type)
    if sized is not None:
        return sized(node, [() if lengths is None else lengths for lengths in inputs], sizes)
    shape = _SHAPES.get(node.op_type)
    return [] if shape is None else shape(node, [() if lengths is None else lengths for lengths in inputs])


def _broadcast(operands: Sequence[Dims | None]) -> Dims | None:
    known = [operand for operand in operands if operand is not None]
    if len(known) != len(operands):
        return None
    count = max(map(len, known))
    padded = [(1,) * (count - len(operand)) + operand for operand in known]
    return tuple(_one(lengths) for lengths in zip(*padded, strict=True))


def _one(lengths: Sequence[int | str | None]) -> int | str | None:
    """The length that operands broadcast to."""
    others = {length for length in lengths if length != 1}
    numbers = [length for length in others if isinstance(length, int)]
    if numbers:
        return numbers[0]
    return 1 if not others else others.pop() if len(others) == 1 else None


def _matmul(_node: ir.Node, inputs: list[Dims]) -> list[Dims | None]:
    a, b = inputs
    if len(a) < 2 or len(b) < 2:
        return [None]
    batch = _broadcast([a[:-2], b[:-2]])
    return [None if batch is None else (*batch, a[-2], b[-1])]


def _gemm(node: ir.Node, inputs: list[Dims]) -> list[Dims | None]:
    a, b = inputs[:2]
    return [(a[int_attribute(node, "transA", 0)], b[1 - int_attribute(node, "transB", 0)])]


def _transpose(node: ir.Node, inputs: list[Dims]) -> list[Dims | None]:
    order = node.attributes.get("perm")
    return [inputs[0][::-1] if order is None else tuple(inputs[0][axis] for axis in order.as_ints())]


def _reduce(node: ir.Node, inputs: list[Dims]) -> list[Dims | None]:
    attribute = node.attributes.get("axes")
    listed = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = attribute.as_ints() if attribute is not None else None if listed is None else listed.tolist()
    if axes is None:
        return [None]
    chosen = {int(axis) % len(inputs[0]) for axis in axes}
    keep = int_attribute(node, "keepdims", 1)
    return [tuple(1 if i in chosen else d for i, d in enumerate(inputs[0]) if keep or i not in chosen)]


def _gather(node: ir.Node, inputs: list[Dims]) -> list[Dims | None]:
    axis = int_attribute(node, "axis", 0) % len(inputs[0])
    return [(*inputs[0][:axis], *inputs[1], *inputs[0][axis + 1 :])]


def _off_axis(node: ir.Node, inputs: list[Dims]) -> list[Dims | None]:
    """Concat and Split change one axis."""
    axis = int_attribute(node, "axis", 0) % len(inputs[0])
    used = inputs if node.op_type == "Concat" else inputs[:1]
    rest: list[int | str | None] = []
    for number, lengths in enumerate(zip(*used, strict=True)):
        named = [length for length in lengths if length is not None]
        rest.append(None if number == axis or not named else named[0])
    return [tuple(rest)] * len(node.outputs)


def _slice(node: ir.Node, inputs: list[Dims], sizes: SizeTable) -> list[Dims | None]:
    """A range up to a symbol is as long as that: a shorter table would fit nothing that it meets."""
    axes = sizes.of(node.inputs[3]) if len(node.inputs) > 3 else None
    if axes is None:
        return [None]
    cut = {axis % len(inputs[0]) for axis in axes if isinstance(axis, int)}
    lengths = [None if axis in cut else length for axis, length in enumerate(inputs[0])]
    start, stop = sizes.one(node.inputs[1]), sizes.one(node.inputs[2])
    step = sizes.one(node.inputs[4]) if len(node.inputs) > 4 else 1
    if isinstance(start, int) and start >= 0 and isinstance(stop, str) and step == 1 and len(cut) == 1:
        symbol, _, offset = stop.partition("+")
        if int(offset or 0) == start:
            lengths[cut.pop()] = symbol
    return [tuple(lengths)]


def _range(node: ir.Node, _inputs: list[Dims], sizes: SizeTable) -> list[Dims | None]:
    start, stop, step = (sizes.one(value) for value in node.inputs)
    return [(stop,) if start == 0 and step == 1 and "+" not in str(stop) else None]


def _expand(node: ir.Node, inputs: list[Dims], sizes: SizeTable) -> list[Dims | None]:
    target = sizes.of(node.inputs[1])
    return [None if target is None else _broadcast([inputs[0], target])]


def _squeezed(node: ir.Node, inputs: list[Dims]) -> list[Dims | None]:
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        return [None]
    lengths = list(inputs[0])
    if node.op_type == "Squeeze":
        cut = {int(axis) % len(lengths) for axis in axes}
        return [tuple(length for axis, length in enumerate(lengths) if axis not in cut)]
    for axis in sorted(int(axis) % (len(lengths) + axes.size) for axis in axes):
        lengths.insert(axis, 1)
    return [tuple(lengths)]


def _reshape(node: ir.Node, inputs: list[Dims], sizes: SizeTable) -> list[Dims | None]:
    """The one length that is left open is what remains of the product of all."""
    known, target = dims(node.outputs[0]), sizes.of(node.inputs[1])
    if known is None or int_attribute(node, "allowzero", 0):
        return [None]
    after = list(known)
    for axis, size in enumerate(target or ()):
        if size == 0:
            after[axis] = inputs[0][axis]
        elif after[axis] is None and size != -1:
            after[axis] = size
    if after.count(None) == 1:
        after[after.index(None)] = _quotient(inputs[0], [length for length in after if length is not None])
    return [tuple(after)]


def _quotient(whole: Dims, parts: Sequence[int | str]) -> int | str | None:
    """The product of some lengths over that of others, if it is a product too."""
    if None in whole:
        return None
    above = Counter(factor for length in whole for factor in str(length).split("*"))
    below = Counter(factor for length in parts for factor in str(length).split("*"))
    number, divisor = (math.prod(int(f) for f in side.elements() if f.isdigit()) for side in (above, below))
    symbols, removed = (Counter(f for f in side.elements() if not f.isdigit()) for side in (above, below))
    if removed - symbols or divisor == 0 or number % divisor:
        return None
    return product([str(number // divisor), *(symbols - removed).elements()])


_SIZED: Final[dict[str, Callable[[ir.Node, list[Dims], SizeTable], list[Dims | None]]]] = {
    "Expand": _expand,
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
}
_SHAPES: Final[dict[str, Callable[[ir.Node, list[Dims]], list[Dims | None]]]] = {
    "Concat": _off_axis,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "ReduceL1": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Split": _off_axis,
    "Squeeze": _squeezed,
    "Transpose": _transpose,
    "Unsqueeze": _squeezed,
}
