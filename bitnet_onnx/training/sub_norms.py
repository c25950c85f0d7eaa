"""Sub-norms that were put into a trained decoder: how large their weights are at first."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.errors import InputError
from bitnet_onnx.training._float_session import FloatSession, float_graph
from bitnet_onnx.training.graph.pruning import keep_outputs
from bitnet_onnx.training.start import Start

#: Branch of a block to the linear layer that its sub-norm stands before.
_READERS: Final = {"attn": "o_proj", "mlp": "down_proj"}


def fit_sub_norms(start: Start, input_ids: npt.NDArray[np.int64], *, threads: int = 0) -> Start:
    """The start with sub-norms whose output is as large as their input was, for the median token.

    A norm of weight 1 would make attention's output several times larger than the layers behind it are used to: on
    SmolLM2-135M the cross entropy of 4.2 becomes 17.3, and 5.2 with fitted weights. The median, because a few tokens
    (the first of all) are larger than the others by orders of magnitude.

    Args:
        start: still open; one without norms that were put in is given back as it is.
        input_ids: tokens of the training texts, int64 `[batch, length]`; a few hundred are enough.
        threads: to compute with; 0 is all cores.

    Raises:
        InputError: there are no tokens, or the decoder has no room for so many.
    """
    if not start.put_in or start.origin is None:
        return start
    if not input_ids.size:
        raise InputError("sub-norms are fitted to training texts, and there are no tokens")
    spec = start.origin.spec
    graph = float_graph(spec, input_ids.shape[1])
    nodes = {node.name: node for node in graph.model.graph}
    widths = {"attn": spec.attention_size, "mlp": spec.intermediate_size}
    roles = {f"layers.{index}.{branch}": branch for index in range(spec.num_hidden_layers) for branch in _READERS}
    for role, branch in roles.items():
        _add_size(graph.model.graph, role, nodes[f"{module_path(f'{role}.{_READERS[branch]}')}/Gemm"])
    keep_outputs(graph.model.graph, roles)
    found = FloatSession(graph, start.origin.tensors, threads)(input_ids, dict.fromkeys(roles, (input_ids.size,)))
    sizes = {
        f"{role}.sub_norm.weight": float(np.median(found[role])) / math.sqrt(widths[branch])
        for role, branch in roles.items()
    }
    # A branch that gives nothing says nothing about its norm.
    return start.with_norms({role: sizes[role] or 1.0 for role in start.put_in})


def _add_size(graph: ir.Graph, name: str, reader: ir.Node) -> None:
    """Give the length of each token's vector that a node reads as an output, float `[tokens]`."""
    size = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["tokens"]))
    node = ir.node(
        "ReduceL2", [reader.inputs[0]], {"axes": [1], "keepdims": 0}, outputs=[size], name=f"/{name}/ReduceL2"
    )
    graph.insert_before(reader, node)
    graph.outputs.append(size)
