"""Writes nodes behind a graph, and knows what is static of its shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitnet_onnx.errors import UnsupportedError

Attributes = Mapping[str, int | float | str | Sequence[int]]
#: Lengths of a value's axes: a number, a symbol, or None where nothing is known.
Dims = tuple[int | str | None, ...]


class Emitter:
    """Collects the nodes of a backward pass; equal nodes are written once.

    Args:
        graph: whose values the nodes read. Constants become its initializers at once, nodes only by `nodes`.
        prefix: of all names.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.graph: Final = graph
        self.prefix: Final = prefix
        self.nodes: Final[list[ir.Node]] = []
        #: What a node reads instead of a value of the forward pass.
        self.replace: Callable[[ir.Value], ir.Value] = lambda value: value
        #: Name of the forward node that is differentiated; it goes into the names of what is written.
        self.scope = ""
        self._equal: dict[object, tuple[ir.Value, ...]] = {}
        self._constants: dict[object, ir.Value] = {}
        self._axes: Final = _input_axes(graph)

    def op(self, op_type: str, *inputs: ir.Value | None, attributes: Attributes | None = None) -> ir.Value:
        """A node with one output."""
        attributes = attributes or {}
        read = [None if value is None else self.replace(value) for value in inputs]
        key = (
            op_type,
            tuple(map(id, read)),
            tuple((name, tuple(a) if isinstance(a, list | tuple) else a) for name, a in sorted(attributes.items())),
        )
        if key not in self._equal:
            name = f"{self.prefix}/{len(self.nodes)}/{self.scope}/{op_type}"
            output = ir.Value(name=name)
            self.nodes.append(ir.node(op_type, read, attributes, outputs=[output], name=name))
            self._equal[key] = (output,)
        return self._equal[key][0]

    def mean(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """A mean that keeps its axes."""
        if self.graph.opset_imports.get("", 0) < 18:
            return self.op("ReduceMean", value, attributes={"axes": list(axes)})
        return self.op("ReduceMean", value, self.ints(*axes))

    def constant(self, array: npt.NDArray[Any]) -> ir.Value:
        """An initializer."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = ir.tensor(np.asarray(array, order="C"), name=f"{self.prefix}/constant/{len(self._constants)}")
            value = ir.Value(
                name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def ints(self, *numbers: int) -> ir.Value:
        """A list of int64."""
        return self.constant(np.array(numbers, np.int64))

    def scalar(self, like: ir.Value, number: float) -> ir.Value:
        """A number of a value's type."""
        return self.constant(np.array(number, (like.dtype or ir.DataType.FLOAT).numpy()))

    def shape(self, value: ir.Value) -> ir.Value:
        """A value's shape as int64; of symbols that name axes of graph inputs, without keeping the value alive."""
        lengths = dims(value)
        if lengths is None:
            return self.op("Shape", value)
        numbers = [length for length in lengths if isinstance(length, int)]
        if len(numbers) == len(lengths):
            return self.ints(*numbers)
        parts = [self._length(length) for length in lengths]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return self.op("Shape", value)
        return found[0] if len(found) == 1 else self.op("Concat", *found, attributes={"axis": 0})

    def _length(self, length: int | str | None) -> ir.Value | None:
        """What a number or a product of symbols of the graph's inputs stands for, as int64 `[1]`."""
        if length is None:
            return None
        product: ir.Value | None = None
        for factor in str(length).split("*"):
            if factor.isdigit():
                value = self.ints(int(factor))
            elif factor in self._axes:
                source, axis = self._axes[factor]
                value = self.op("Shape", source, attributes={"start": axis, "end": axis + 1})
            else:
                return None
            product = value if product is None else self.op("Mul", product, value)
        return product

    def reshape(self, value: ir.Value, before: Dims | None, like: ir.Value) -> ir.Value:
        """Give a value of shape `before` the shape of another, by constants where they say it."""
        after = dims(like)
        if after is None:
            return self.op("Reshape", value, self.op("Shape", like))
        if after == before and None not in after:
            return value
        target: list[int] = []
        for axis, length in enumerate(after):
            if isinstance(length, int):
                target.append(length)
            elif before is not None and length is not None and before[axis : axis + 1] == (length,):
                target.append(0)
            else:
                target.append(-1)
        if target.count(-1) <= 1 and not (target.count(-1) == 1 and 0 in after):
            return self.op("Reshape", value, self.ints(*target))
        return self.op("Reshape", value, self.shape(like))

    def zeros(self, like: ir.Value) -> ir.Value:
        """As many zeros as a value has elements."""
        return self.op("Expand", self.scalar(like, 0.0), self.shape(like))


def dims(value: ir.Value) -> Dims | None:
    """What is known of a value's shape; None where not even its rank is."""
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def rank(node: ir.Node, value: ir.Value) -> int:
    """A value's rank.

    Raises:
        UnsupportedError: it is not known.
    """
    if value.shape is None:
        raise unsupported(node, f"the rank of '{value.name}' is not known")
    return len(value.shape)


def unsupported(node: ir.Node, why: str) -> UnsupportedError:
    """The error of a node that cannot be differentiated."""
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return UnsupportedError(f"node '{node.name}' ({operator}) cannot be differentiated: {why}")


def constant_of(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """What a value always is, if it is an initializer or of a Constant node."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or (value.const_value is not None and value.is_graph_input()):
        return None
    return tensor.numpy()


def readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Nodes of the forward pass that read a value, and as which input: what is being written is in no graph yet."""
    return [(use.node, use.idx) for use in value.uses() if use.node.graph is not None]


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An attribute that is an integer."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _input_axes(graph: ir.Graph) -> dict[str, tuple[ir.Value, int]]:
    """For every symbol in the inputs' shapes a place where it stands."""
    found: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, length in enumerate(dims(value) or ()):
            if isinstance(length, str):
                found.setdefault(length, (value, axis))
    return found
