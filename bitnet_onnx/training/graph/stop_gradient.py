"""What becomes of `StopGradient` before a graph runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from bitnet_onnx.training.graph.options import STOP_GRADIENT, TRAINING_DOMAIN

_INDEX: Final = "constant.stop_gradient_index"


def as_identity(model: ir.Model) -> ir.Model:
    """A copy that every ONNX Runtime takes; for graphs whose gradients are computed already, or never."""
    return _replaced(model, lambda node: [_node("Identity", node, [node.inputs[0]])])


def as_sequence(model: ir.Model) -> ir.Model:
    """A copy in which a sequence of one tensor stops the gradient: onnxruntime-training has none for sequences."""
    index = ir.Value(name=_INDEX, const_value=ir.tensor(np.array(0, np.int64), name=_INDEX))
    index.type, index.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([])

    def nodes(node: ir.Node) -> list[ir.Node]:
        sequence = _node("SequenceConstruct", node, [node.inputs[0]])
        return [sequence, _node("SequenceAt", node, [sequence.outputs[0], index])]

    copy = _replaced(model, nodes)
    if index.uses():
        copy.graph.register_initializer(index)
    return copy


def _node(operator: str, stopped: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
    path = (stopped.name or "").rsplit("/", 1)[0]
    return ir.node(operator, inputs, name=f"{path}/{operator}", outputs=[ir.Value(name=f"{path}/{operator}/output_0")])


def _replaced(model: ir.Model, nodes: Callable[[ir.Node], list[ir.Node]]) -> ir.Model:
    """A copy with other nodes in the place of each `StopGradient`; the last one's output takes over the name."""
    copy = model.clone()
    for node in list(copy.graph):
        if (node.domain, node.op_type) == (TRAINING_DOMAIN, STOP_GRADIENT):
            made, name = nodes(node), node.outputs[0].name
            ir.convenience.replace_nodes_and_values(copy.graph, node, [node], made, node.outputs, made[-1].outputs)
            made[-1].outputs[0].name = name
    copy.graph.opset_imports.pop(TRAINING_DOMAIN, None)
    return copy
