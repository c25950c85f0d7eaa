"""A thin layer over onnx-ir for training graphs: inputs, parameters, constants in memory, named nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitnet_onnx.training.graph.options import STOP_GRADIENT, TRAINING_DOMAIN

#: What onnxruntime-training 1.19.2 takes too. It joins the nodes of an RMSNorm up to opset 17 only.
OPSET: Final = 17
IR_VERSION: Final = 8

Attributes = Mapping[str, int | float | str | Sequence[int]]


class Builder:
    """Builds one graph."""

    def __init__(self) -> None:
        self._inputs: dict[str, ir.Value] = {}
        self._outputs: list[ir.Value] = []
        self._constants: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """A graph input; one that exists already is given back."""
        if name not in self._inputs:
            self._inputs[name] = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        return self._inputs[name]

    def output(self, value: ir.Value, name: str, shape: Sequence[int | str]) -> None:
        """Make a float value a graph output under a name of its own."""
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        self._outputs.append(value)

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """An initializer; a name that exists already is given back as it is."""
        if name not in self._constants:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
            )
            self._constants[name] = value
        return self._constants[name]

    def scalar(self, value: float) -> ir.Value:
        """A shared float scalar."""
        return self.constant(f"constant.float_{float(np.float32(value))!r}", np.array(value, np.float32))

    def ints(self, *values: int) -> ir.Value:
        """A shared int64 vector."""
        return self.constant("constant.ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def int_scalar(self, value: int) -> ir.Value:
        """A shared int64 scalar."""
        return self.constant(f"constant.int_{value}", np.array(value, np.int64))

    def nodes(
        self,
        name: str,
        inputs: Sequence[ir.Value],
        outputs: int,
        attributes: Attributes | None = None,
        *,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Add a node called `name`, whose last part is the operator, and return its outputs."""
        values = [ir.Value(name=f"{name}/output_{index}") for index in range(outputs)]
        operator = name.rsplit("/", 1)[1]
        self._nodes.append(ir.node(operator, inputs, attributes, domain=domain, outputs=values, name=name))
        return values

    def node(self, name: str, inputs: Sequence[ir.Value], attributes: Attributes | None = None) -> ir.Value:
        """Add a node with one output."""
        return self.nodes(name, inputs, 1, attributes)[0]

    def reshape(self, path: str, x: ir.Value, *shape: int) -> ir.Value:
        """Reshape to a constant shape, in which 0 copies a dimension and -1 is what is left."""
        return self.node(f"{path}/Reshape", [x, self.ints(*shape)])

    def stop(self, path: str, x: ir.Value) -> ir.Value:
        """A copy of `x` that no gradient passes."""
        return self.nodes(f"{path}/{STOP_GRADIENT}", [x], 1, domain=TRAINING_DOMAIN)[0]

    def model(self) -> ir.Model:
        """The finished model."""
        graph = ir.Graph(
            list(self._inputs.values()),
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._constants.values()),
            opset_imports={"": OPSET, TRAINING_DOMAIN: 1},
            name="training",
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="bitnet-onnx")
