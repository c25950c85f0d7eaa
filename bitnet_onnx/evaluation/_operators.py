"""Every linear layer of a package on the inputs that it really has, against the numpy operator, bit for bit.

Logits behind rounded activations can only be compared loosely; here each layer is taken by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx

from bitnet_onnx.bitlinear import BitLinearAttributes, PackedLinear, bitlinear
from bitnet_onnx.converters._package_graph import PackageGraph, StoredArray
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.evaluation._report import OperatorCheck
from bitnet_onnx.package_format import OPERATOR_DOMAIN
from bitnet_onnx.packing import PANEL_ROWS
from bitnet_onnx.quantized import ByteArray, FloatArray, Grid

#: Weights held as numbers at once.
_CHUNK: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class LinearNode:
    """A linear layer of the graph.

    Attributes:
        name: of the node.
        inputs: names of its inputs; empty for one that it leaves out.
        output: name of its output.
        attributes: of the node.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: BitLinearAttributes


def linear_nodes(model: onnx.ModelProto) -> list[LinearNode]:
    """The quantized linear layers.

    Raises:
        PackageError: an attribute is missing or impossible.
    """
    found = []
    for node in model.graph.node:
        if node.domain != OPERATOR_DOMAIN or node.op_type != "BitLinear":
            continue
        at = {attribute.name: attribute for attribute in node.attribute}
        try:
            grid = Grid(at["bits"].i, at["zero_point"].i, at["group_size"].i)
            sizes = at["in_features"].i, at["out_features"].i
            attributes = BitLinearAttributes(*sizes, grid, at["activation_bits"].i, at["epsilon"].f)
        except KeyError as error:
            raise PackageError(f"the graph's node {node.name!r:.80} has no attribute {error.args[0]}") from error
        except InputError as error:
            raise PackageError(f"the graph's node {node.name!r:.80}: {error}") from error
        found.append(LinearNode(node.name, tuple(node.input), node.output[0], attributes))
    return found


def check_operators(
    nodes: Sequence[LinearNode], graph: PackageGraph, values: Sequence[tuple[FloatArray, FloatArray]]
) -> Iterator[OperatorCheck]:
    """Compare what each layer gave with what the numpy operator gives on the same input.

    Args:
        nodes: the layers.
        graph: where their constant inputs lie.
        values: input and output of each.
    """
    for node, (x, y) in zip(nodes, values, strict=True):
        expected = _expected(node, graph, x)
        # As numbers: a zero may have either sign.
        yield OperatorCheck(node.name, y.size, int(np.count_nonzero(expected != y)))


def _expected(node: LinearNode, graph: PackageGraph, x: FloatArray) -> FloatArray:
    at = node.attributes
    inputs = (*node.inputs, "", "")
    norm, bias = (_floats(graph, name) if name else None for name in inputs[3:5])
    step = max(1, _CHUNK // at.in_features // PANEL_ROWS) * PANEL_ROWS
    parts = []
    for start in range(0, at.out_features, step):
        stop = min(start + step, at.out_features)
        panels = slice(start // PANEL_ROWS, -(-stop // PANEL_ROWS))
        part = PackedLinear(
            replace(at, out_features=stop - start),
            _weight(graph, node.inputs[1], panels),
            _scale(graph, node.inputs[2], at.grid, panels, slice(start, stop)),
            norm,
            None if bias is None else bias[start:stop],
        )
        parts.append(bitlinear(x, part).astype(np.float32, copy=False))
    return np.concatenate(parts, axis=-1)


def _weight(graph: PackageGraph, name: str, panels: slice) -> ByteArray:
    array = _array(graph, name)
    size = array.shape[1] * array.shape[2]
    return array.bytes(panels.start * size, panels.stop * size).reshape(-1, *array.shape[1:])


def _scale(graph: PackageGraph, name: str, grid: Grid, panels: slice, rows: slice) -> FloatArray:
    scale = _floats(graph, name)
    if grid.group_size:
        return scale[panels]
    return scale if scale.shape == (1,) else scale[rows]


def _floats(graph: PackageGraph, name: str) -> FloatArray:
    array = _array(graph, name)
    return array.floats(0, math.prod(array.shape)).reshape(array.shape)


def _array(graph: PackageGraph, name: str) -> StoredArray:
    array = graph.arrays.get(name)
    if array is None:
        raise PackageError(f"the graph's tensor {name!r:.80} is missing")
    return array
