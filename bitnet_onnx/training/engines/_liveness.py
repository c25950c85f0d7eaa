"""How much of what a graph computes is held at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import onnx
import onnx_ir as ir
from onnx import helper, shape_inference

#: The block of whatever the graph is given, or gives to its caller.
_CALLER: Final = ""
#: Whose output is its input under another shape.
_ALIASES: Final = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
#: Whose output may take the place of an input of the same size that nobody needs any more.
_IN_PLACE: Final = frozenset(
    {"Abs", "Add", "Cast", "Clip", "Div", "Erf", "Exp", "Gelu", "Log", "LogSoftmax", "Max", "Min", "Mul", "Neg", "Pow"}
    | {"Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Softmax", "Sqrt", "Sub", "Tanh", "Where"}
)


def peak_bytes(model: ir.Model, dims: Mapping[str, int]) -> int:
    """The most that values computed by a graph's nodes take at one time, without the graph's own outputs.

    What ONNX Runtime shares is counted once: reshaped values, element-wise results over a dead operand, transposes
    that a matrix product reads as they are.

    Args:
        model: of plain ONNX.
        dims: a number for each symbolic dimension of the inputs.
    """
    proto = ir.to_proto(model)
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in dims:
                dim.dim_value = dims[dim.dim_param]
    del proto.graph.value_info[:]  # they name the dimensions that are numbers now
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = shape_inference.infer_shapes(proto, data_prop=True).graph
    return _peak(graph, _sizes(graph))


def _sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Bytes of each value whose shape is known."""
    sizes = {}
    for value in (*graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
            continue
        width = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        sizes[value.name] = width * math.prod(dim.dim_value for dim in kind.shape.dim)
    return sizes


def _peak(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        # ONNX Runtime takes shapes as soon as it can: they keep nothing.
        for name in () if node.op_type == "Shape" else node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    # Where each value lies, and each block's bytes and readings to come.
    block_of: dict[str, str] = {}
    held = {_CALLER: 0}
    pending = {_CALLER: 1}
    now = peak = 0
    for node in graph.node:
        names = [name for name in node.output if name]
        shared = _shared(node, readers, sizes, block_of, pending)
        for name in names:
            block = _CALLER if name in outputs else name if shared is None or name != names[0] else shared
            block_of[name] = block
            if block not in held:
                # An unknown shape is taken for that of the largest operand.
                held[block] = sizes.get(name, max((sizes.get(source, 0) for source in node.input), default=0))
                now += held[block]
            pending[block] = pending.get(block, 0) + len(readers.get(name, ()))
        peak = max(peak, now)
        for name in () if node.op_type == "Shape" else filter(None, node.input):
            pending[block_of.get(name, _CALLER)] -= name in block_of
        for block in {block_of[name] for name in (*node.input, *names) if name in block_of} - {_CALLER}:
            if pending[block] == 0:
                now -= held.pop(block, 0)
    return peak


def _shared(
    node: onnx.NodeProto,
    readers: Mapping[str, list[onnx.NodeProto]],
    sizes: Mapping[str, int],
    block_of: Mapping[str, str],
    pending: Mapping[str, int],
) -> str | None:
    """The block that a node's first output shares with an input, if any."""
    if node.op_type in _ALIASES or (node.op_type == "Transpose" and _read_by_products(node, readers)):
        return block_of.get(node.input[0], _CALLER)
    if node.op_type not in _IN_PLACE:
        return None
    size = sizes.get(node.output[0])
    for name in node.input:
        block = block_of.get(name, _CALLER)
        last = block != _CALLER and pending[block] == list(node.input).count(name)
        if last and size is not None and sizes.get(name) == size:
            return block
    return None


def _read_by_products(node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]) -> bool:
    """Whether a transpose swaps the last two axes for matrix products alone."""
    perm = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
    if perm is None or perm != [*range(len(perm) - 2), len(perm) - 1, len(perm) - 2]:
        return False
    return all(reader.op_type in ("MatMul", "Gemm") for reader in readers.get(node.output[0], ()))
