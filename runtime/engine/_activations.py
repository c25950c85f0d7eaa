"""How much memory one call of a graph takes for what lies between its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnx

from bitnet_onnx.errors import PackageError
from bitnet_onnx.package_format import LOGITS_START
from bitnet_onnx.runtime._native_errors import one_line

#: Kernels hold rounded copies of their inputs and partial results beside what the graph names, and function bodies
#: have values of their own. Measured with 135M parameters: 1.7 and 2.8 times what is counted here.
_KERNELS: Final = 2
_BODIES: Final = 4
_FIXED_BYTES: Final = 4 * 2**20
_CACHE: Final = ("past_key_values.", "present.")


def activation_bytes(path: Path, *, chunk: int, batch: int, bodies: bool) -> int:
    """A bound of the memory that ONNX Runtime takes during a call, without its arena.

    A value counts from the node that makes it to the last that reads it, as float32. Its width follows from the
    weights that its node multiplies with; other nodes give values as wide as their widest input.

    Args:
        path: the decoder graph, which has been opened and checked.
        chunk: tokens of a call with one row.
        batch: rows of a call with one token each.
        bodies: function bodies run instead of the operator library.

    Raises:
        PackageError: the file is not in the format of ONNX.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:
        raise PackageError(f"{path}: cannot be read as an ONNX graph: {one_line(error)}") from None
    peak = max(_peak(graph, tokens=chunk, rows=1), _peak(graph, tokens=batch, rows=batch))
    return 4 * peak * (_BODIES if bodies else _KERNELS) + _FIXED_BYTES


def _peak(graph: onnx.GraphProto, *, tokens: int, rows: int) -> int:
    """The most numbers that are alive at a time; `rows` of the tokens are left behind `logits_start`."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last |= {value.name: len(graph.node) for value in graph.output}
    shapes = {"input_ids": (tokens, 1)}
    alive = peak = 0
    for index, node in enumerate(graph.node):
        inputs = [shapes[name] for name in node.input if name in shapes]
        if not inputs:
            continue  # of the mask, a number for each row
        count = rows if LOGITS_START in node.input else max(count for count, _ in inputs)
        shape = (count, _width(node, [width for _, width in inputs], weights))
        made = [name for name in node.output if name and not name.startswith(_CACHE)]
        shapes |= dict.fromkeys(made, shape)
        alive += len(made) * shape[0] * shape[1]
        peak = max(peak, alive)
        for name in {*made, *node.input} & shapes.keys():
            if last.get(name, index) == index and name != "input_ids":
                alive -= shapes[name][0] * shapes[name][1]
    return peak


def _width(node: onnx.NodeProto, inputs: list[int], weights: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers that a node gives for each token."""
    attributes = {attribute.name: int(attribute.i) for attribute in node.attribute}
    for name in ("in_features",) if node.op_type == "BitEmbedding" else ("out_features", "N"):
        if name in attributes:
            return attributes[name]
    if node.op_type in {"MatMul", "Gather"}:
        return next((weights[name][-1] for name in node.input if weights.get(name)), max(inputs))
    return sum(inputs) if node.op_type == "Concat" else max(inputs)
