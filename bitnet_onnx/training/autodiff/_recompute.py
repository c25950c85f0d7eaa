"""Segments of the forward pass that the backward pass computes again instead of keeping their values."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.autodiff._emitter import dims
from bitnet_onnx.training.autodiff._tape import Tape


class Segments:
    """What lies between two boundaries, and its second computation.

    A node between two boundaries belongs to their segment if the later one depends on it, the earlier one does not,
    and it depends on the earlier one or on a parameter; what depends on neither (masks, tables) is kept.

    Args:
        graph: the forward pass.
        boundaries: names of values, each of which depends on the one before.
        parameters: what is trained.

    Raises:
        InputError: a name is unknown, or does not depend on the one before.
    """

    def __init__(self, graph: ir.Graph, boundaries: Sequence[str], parameters: Sequence[ir.Value]) -> None:
        by_name = {output.name: output for node in graph for output in node.outputs}
        by_name |= {value.name: value for value in graph.inputs}
        missing = [name for name in boundaries if name not in by_name]
        if missing:
            raise InputError(f"cannot recompute from '{missing[0]}': the graph has no value of that name")
        self._boundaries = [by_name[name] for name in boundaries]
        self._parameters = frozenset(parameters)
        self._of: dict[ir.Node, int] = {}
        #: Nodes that depend on a segment's own boundary.
        self._behind: set[ir.Node] = set()
        seen: set[ir.Node] = set()
        for number, boundary in enumerate(self._boundaries):
            found = _ancestors(boundary, seen)
            seen |= found
            if number:
                self._add(graph, number, found)
        self._copies: dict[ir.Value, ir.Value] = {}
        self._entries: dict[tuple[int, ir.Value], ir.Value] = {}

    def _add(self, graph: ir.Graph, number: int, found: set[ir.Node]) -> None:
        start = self._boundaries[number - 1]
        varying: set[ir.Value] = {start, *self._parameters}
        behind = {start}
        for node in graph:
            if node in found and any(value in varying for value in node.inputs if value is not None):
                varying.update(node.outputs)
                self._of[node] = number
                if any(value in behind for value in node.inputs if value is not None):
                    behind.update(node.outputs)
                    self._behind.add(node)
        if self._boundaries[number] not in behind:
            raise InputError(
                f"cannot recompute from '{start.name}' to '{self._boundaries[number].name}': "
                "the second does not depend on the first; name values in their order"
            )

    def enter(self, tape: Tape, node: ir.Node) -> None:
        """Let the rule of a node read the second computation of its own segment."""
        number = self._of.get(node)
        if number is None:
            tape.replace = lambda value: value
        else:
            segment = number
            tape.replace = lambda value: self._copy(tape, value, segment)

    def _copy(self, tape: Tape, value: ir.Value, number: int) -> ir.Value:
        """A value computed again, written when it is first read."""
        node = value.producer()
        if node is None or self._of.get(node) != number or value is self._boundaries[number]:
            return value
        if value not in self._copies:
            # Written from the inputs on, without recursion: a block may be deep.
            for each in self._needed(node, number):
                self._repeat(tape, each, number)
        return self._copies[value]

    def _needed(self, node: ir.Node, number: int) -> list[ir.Node]:
        """A node of a segment and what it depends on there, inputs first, without what has been written."""
        order: list[ir.Node] = []
        stack = [(node, False)]
        done: set[ir.Node] = set()
        while stack:
            top, expanded = stack.pop()
            if expanded:
                order.append(top)
            elif top not in done and top.outputs[0] not in self._copies:
                done.add(top)
                stack.append((top, True))
                producers = (value.producer() for value in top.inputs if value is not None)
                stack.extend((p, False) for p in producers if p is not None and self._of.get(p) == number)
        return order

    def _repeat(self, tape: Tape, node: ir.Node, number: int) -> None:
        inputs = [None if value is None else self._input(tape, node, value, number) for value in node.inputs]
        name = f"again/{node.name or node.outputs[0].name}"
        outputs = [ir.Value(name=value.name and f"again/{value.name}", type=value.type) for value in node.outputs]
        tape.nodes.append(
            ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), outputs=outputs, name=name)
        )
        self._copies.update(zip(node.outputs, outputs, strict=True))

    def _input(self, tape: Tape, node: ir.Node, value: ir.Value, number: int) -> ir.Value:
        if value in self._copies:
            return self._copies[value]
        if value is self._boundaries[number - 1]:
            return self._entry(tape, value, number)
        # What depends on parameters alone would be merged with the first computation.
        if value in self._parameters and node not in self._behind and dims(value):
            return self._entry(tape, value, number)
        return value

    def _entry(self, tape: Tape, value: ir.Value, number: int) -> ir.Value:
        """A value in another name, known once the gradient of the segment's end is: a Reshape to its own shape.

        That makes the second computation differ from the first one, and come late.
        """
        key = (number, value)
        if key not in self._entries:
            replace, tape.replace = tape.replace, lambda value: value
            end = self._boundaries[number]
            shape = tape.op("Shape", tape.gradient(end))
            if dims(end) is None or dims(end) != dims(value):
                least = tape.op("ReduceMin", shape, attributes={"keepdims": 1})
                nothing = tape.op("Min", least, tape.ints(0))
                shape = tape.op("Add", tape.shape(value), nothing)
            self._entries[key] = tape.op("Reshape", value, shape)
            tape.replace = replace
        return self._entries[key]


def _ancestors(value: ir.Value, stop: set[ir.Node]) -> set[ir.Node]:
    """Nodes that a value depends on, but for some."""
    found: set[ir.Node] = set()
    stack = [value.producer()]
    while stack:
        node = stack.pop()
        if node is not None and node not in found and node not in stop:
            found.add(node)
            stack.extend(each.producer() for each in node.inputs if each is not None)
    return found
