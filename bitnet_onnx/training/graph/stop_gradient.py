"""What becomes of a training graph before it runs: `StopGradient` is no operator of any runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bitnet_onnx.training.autodiff import lower_losses
from bitnet_onnx.training.graph.options import STOP_GRADIENT, TRAINING_DOMAIN


def as_identity(model: ir.Model) -> ir.Model:
    """A copy for current ONNX Runtime, of a graph whose gradients are computed already, or never.

    Cross entropies are written out too: ONNX Runtime itself takes a softmax over the middle one of three axes for them,
    which is five times as slow.
    """
    copy = model.clone()
    for node in list(copy.graph):
        if _stops(node):
            replacement = _Replacement(node)
            replacement.finish([replacement.add("Identity", [node.inputs[0]])])
    lower_losses(copy.graph)
    copy.graph.opset_imports.pop(TRAINING_DOMAIN, None)
    return copy


def as_sequence(model: ir.Model) -> ir.Model:
    """A copy in which a sequence of one tensor stops the gradient: onnxruntime-training has none for sequences."""
    copy = model.clone()
    for node in list(copy.graph):
        if _stops(node):
            replacement = _Replacement(node)
            sequence = replacement.add("SequenceConstruct", [node.inputs[0]])
            replacement.finish([replacement.add("SequenceAt", [sequence, replacement.constant(0)])])
    copy.graph.opset_imports.pop(TRAINING_DOMAIN, None)
    return copy


class _Replacement:
    """Nodes in the place of another one.

    Args:
        node: of a graph.
    """

    def __init__(self, node: ir.Node) -> None:
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            raise TypeError("the node stands in no graph")
        self._graph = graph
        self._node = node
        self._nodes: list[ir.Node] = []
        self._path = (node.name or "").rsplit("/", 1)[0]

    def add(self, operator: str, inputs: Sequence[ir.Value | None]) -> ir.Value:
        """A node with one output."""
        name = f"{self._path}/{operator}"
        self._nodes.append(ir.node(operator, inputs, name=name, outputs=[ir.Value(name=f"{name}/output_0")]))
        return self._nodes[-1].outputs[0]

    def constant(self, number: int) -> ir.Value:
        """An int64 scalar, shared by all replacements."""
        array = np.array(number, np.int64)
        name = f"constant.replacement_{number}"
        if name not in self._graph.initializers:
            value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(array.shape))
            value.const_value = ir.tensor(array, name=name)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def finish(self, outputs: Sequence[ir.Value]) -> None:
        """Put the nodes in, with their outputs under the names of the old ones."""
        old = self._node.outputs[: len(outputs)]
        names = [value.name for value in old]
        ir.convenience.replace_nodes_and_values(self._graph, self._node, [self._node], self._nodes, old, outputs)
        for value, name in zip(outputs, names, strict=True):
            value.name = name


def _stops(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (TRAINING_DOMAIN, STOP_GRADIENT)
