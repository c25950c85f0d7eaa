"""Parts of a graph: what some of its outputs need."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from bitnet_onnx.training.graph.options import Term, loss_output


def keep_outputs(graph: ir.Graph, names: Collection[str]) -> None:
    """Take all other outputs from a graph, and all nodes and inputs that only they need."""
    graph.outputs[:] = [value for value in graph.outputs if value.name in names]
    kept = {id(value) for value in graph.outputs}
    for node in reversed(list(graph)):
        if not any(output.uses() or id(output) in kept for output in node.outputs):
            graph.remove(node, safe=True)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]


def evaluation_graph(model: ir.Model) -> ir.Model:
    """A copy of a training graph with the cross entropy alone: it reads no teacher and no weights of losses.

    Raises:
        ValueError: the cross entropy is not among the terms of the loss.
    """
    copy, name = model.clone(), loss_output(Term.CROSS_ENTROPY)
    if all(value.name != name for value in copy.graph.outputs):
        raise ValueError(f"the training graph has no output {name}")
    keep_outputs(copy.graph, {name})
    return copy
