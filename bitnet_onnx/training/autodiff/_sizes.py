"""Integers that a graph computes of shapes: numbers, and symbols of axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx_ir as ir

from bitnet_onnx.training.autodiff._emitter import constant_of, dims, int_attribute

#: Elements of a scalar or a list: a number, a symbol, a product `a*b`, a sum `a+1`, or None where it is not known.
Sizes = tuple[int | str | None, ...]
#: Longer lists are no shapes.
_MOST: Final = 16


class SizeTable:
    """What is known of integer values; nodes are read in their order."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Sizes] = {}

    def of(self, value: ir.Value | None) -> Sizes | None:
        """A value's elements, or None where it is no short list of integers that is known."""
        if value is None:
            return None
        if value not in self._known:
            array = constant_of(value)
            if array is None or array.dtype != np.int64 or array.ndim > 1 or array.size > _MOST:
                return None
            self._known[value] = tuple(array.reshape(-1).tolist())
        return self._known[value]

    def one(self, value: ir.Value | None) -> int | str | None:
        """A value's only element."""
        sizes = self.of(value)
        return sizes[0] if sizes is not None and len(sizes) == 1 else None

    def read(self, node: ir.Node) -> None:
        """Note what a node computes."""
        function = _FUNCTIONS.get(node.op_type)
        found = function(self, node) if function is not None else None
        if found is not None and len(found) <= _MOST:
            self._known[node.outputs[0]] = found


def _shape(_table: SizeTable, node: ir.Node) -> Sizes | None:
    lengths = None if node.inputs[0] is None else dims(node.inputs[0])
    if lengths is None:
        return None
    return lengths[int_attribute(node, "start", 0) : int_attribute(node, "end", len(lengths))]


def _same(table: SizeTable, node: ir.Node) -> Sizes | None:
    return table.of(node.inputs[0])


def _concat(table: SizeTable, node: ir.Node) -> Sizes | None:
    parts = [table.of(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    return tuple(size for part in known for size in part) if len(known) == len(parts) else None


def _slice(table: SizeTable, node: ir.Node) -> Sizes | None:
    sizes, start, stop = table.of(node.inputs[0]), table.one(node.inputs[1]), table.one(node.inputs[2])
    step = table.one(node.inputs[4]) if len(node.inputs) > 4 else 1
    if sizes is None or not isinstance(start, int) or not isinstance(stop, int) or not isinstance(step, int):
        return None
    return sizes[start:stop:step]


def _gather(table: SizeTable, node: ir.Node) -> Sizes | None:
    sizes, places = table.of(node.inputs[0]), table.of(node.inputs[1])
    if sizes is None or places is None:
        return None
    chosen = [place for place in places if isinstance(place, int) and -len(sizes) <= place < len(sizes)]
    return tuple(sizes[place] for place in chosen) if len(chosen) == len(places) else None


def _add(table: SizeTable, node: ir.Node) -> Sizes | None:
    a, b = table.one(node.inputs[0]), table.one(node.inputs[1])
    if a is None or b is None:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return (a + b,)
    if isinstance(a, int):
        a, b = b, a
    return (f"{a}+{b}",) if isinstance(b, int) and "+" not in str(a) else None


def _mul(table: SizeTable, node: ir.Node) -> Sizes | None:
    a, b = table.one(node.inputs[0]), table.one(node.inputs[1])
    if a is None or b is None or "+" in f"{a}{b}":
        return None
    return (product([*str(a).split("*"), *str(b).split("*")]),)


def product(factors: list[str]) -> int | str:
    """Numbers and symbols multiplied, in one order."""
    number = int(np.prod([int(factor) for factor in factors if factor.isdigit()], dtype=np.int64))
    symbols = sorted(factor for factor in factors if not factor.isdigit())
    if not symbols:
        return number
    return "*".join(symbols if number == 1 else [str(number), *symbols])


_FUNCTIONS: Final[dict[str, Callable[[SizeTable, ir.Node], Sizes | None]]] = {
    "Add": _add,
    "Concat": _concat,
    "Gather": _gather,
    "Identity": _same,
    "Mul": _mul,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _same,
    "Unsqueeze": _same,
}
