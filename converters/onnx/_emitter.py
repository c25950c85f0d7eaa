"""A thin layer over onnx-ir: named nodes and initializers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitnet_onnx.converters.onnx._data_file import DataFile, Packed

#: Of a node.
Attributes: TypeAlias = Mapping[str, int | float | str | Sequence[int]]


class Emitter:
    """Builds one graph.

    Args:
        data: where initializers go.
    """

    def __init__(self, data: DataFile) -> None:
        self._data = data
        self._initializers: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Declare a graph input."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        """Make a value a graph output under a name of its own."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._outputs.append(value)

    def constant(self, name: str, array: npt.NDArray[np.generic], packed: Packed | None = None) -> ir.Value:
        """An initializer; a name that exists already is given back as it is."""
        if name not in self._initializers:
            self._add(self._data.store(name, array, packed))
        return self._initializers[name]

    def alias(self, name: str, of: ir.Value, like: Packed) -> ir.Value:
        """The bytes of an initializer once more, of another type or shape; the data file holds them once."""
        if name not in self._initializers:
            self._add(self._data.alias(name, of.const_value, like))
        return self._initializers[name]

    def nodes(
        self,
        name: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        attributes: Attributes | None = None,
        *,
        domain: str = "",
        overload: str = "",
    ) -> Sequence[ir.Value]:
        """Add a node called `name`, whose last part is the operator, and return its outputs."""
        values = [ir.Value(name=f"{name}/output_{index}") for index in range(outputs)]
        node = ir.node(
            name.rsplit("/", 1)[1],
            inputs,
            attributes,
            domain=domain,
            overload=overload,
            outputs=values,
            name=name,
        )
        self._nodes.append(node)
        return node.outputs

    def node(
        self,
        name: str,
        inputs: Sequence[ir.Value | None],
        attributes: Attributes | None = None,
        *,
        domain: str = "",
        overload: str = "",
    ) -> ir.Value:
        """Add a node with one output."""
        return self.nodes(name, inputs, 1, attributes, domain=domain, overload=overload)[0]

    def scalar(self, name: str, value: float) -> ir.Value:
        """A float constant shared by all that ask for the same name."""
        return self.constant(f"constant.{name}", np.array(value, np.float32))

    def ints(self, *values: int) -> ir.Value:
        """A shared int64 vector."""
        return self.constant("constant.ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def int_scalar(self, value: int) -> ir.Value:
        """A shared int64 scalar."""
        return self.constant(f"constant.int_{value}", np.array(value, np.int64))

    def _add(self, tensor: ir.TensorProtocol) -> None:
        name = str(tensor.name)
        value = ir.Value(name=name, const_value=tensor)
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(list(tensor.shape.numpy()))
        self._initializers[name] = value

    def model(
        self, producer_version: str, opsets: Mapping[str, int], ir_version: int, functions: Sequence[ir.Function] = ()
    ) -> ir.Model:
        """The finished model.

        Args:
            producer_version: of this package.
            opsets: versions of the operators by their domains.
            ir_version: of the file.
            functions: local to the model.
        """
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=dict(opsets),
            name="decoder",
        )
        return ir.Model(
            graph,
            ir_version=ir_version,
            producer_name="bitnet-onnx",
            producer_version=producer_version,
            functions=list(functions),
        )


def dotted(path: str, name: str) -> str:
    """`/model/layers.0/attn/o_proj`, `weight` -> `model.layers.0.attn.o_proj.weight`."""
    return f"{path.strip('/').replace('/', '.')}.{name}"
