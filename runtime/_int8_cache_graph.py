"""The decoder graph with int8 keys and values, derived from the package's own when it is opened.

The file holds the float graph alone: scales are a matter of taste, the weights are the same, and other runtimes know
no int8 cache. What is derived is the graph; its weights stay in the data file and are mapped from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bitnet_onnx.errors import PackageError, UnsupportedError
from bitnet_onnx.package_format import OPERATOR_DOMAIN
from bitnet_onnx.runtime._native_errors import one_line
from bitnet_onnx.runtime.kv_scales import KvScales

_OPERATOR: Final = "GroupQueryAttention"
_MICROSOFT: Final = "com.microsoft"
#: Weights lie in a file of their own; a graph of a thousand layers has 10 MB.
_MAX_GRAPH_BYTES: Final = 1 << 26
_PAST: Final = re.compile(r"past_key_values\.(\d{1,4})\.(?:key|value)", re.ASCII)
_PRESENT: Final = re.compile(r"present\.\d{1,4}\.(?:key|value)", re.ASCII)
_PAST_KEY, _PAST_VALUE, _COSINE = 3, 4, 7
#: Where the operators have the scales, and the lengths of a ragged batch.
_OUR_SCALES, _OUR_LENGTHS = 10, 9
_STOCK_SCALES, _STOCK_LENGTHS = 12, 16
_STOCK_ATTRIBUTES: Final = {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}


@dataclass(frozen=True, slots=True)
class Rotation:
    """Which features of the keys of a layer turn into each other as positions go on.

    Attributes:
        features: rotated ones, the first of a head; 0: none.
        interleaved: pairs are `2i, 2i + 1` and not `i, i + features / 2`.
    """

    features: int
    interleaved: bool


def int8_cache_graph(path: Path, scales: KvScales, *, operators: bool) -> bytes:
    """A serialized model as the one in `path`, whose keys and values are int8.

    Args:
        path: the decoder graph.
        scales: of its keys and values.
        operators: the operator library will be registered; otherwise our attention becomes ONNX Runtime's.

    Raises:
        PackageError: the file is not in the format of ONNX.
        UnsupportedError: attention has a form that has no int8 cache.
    """
    model = _load(path)
    graph = model.graph
    stock = False
    for layer, node in enumerate(_attention(path, graph, len(scales.key))):
        names = [f"bitnet_onnx.kv_scales.{layer}.{part}" for part in ("key", "value")]
        if operators and node.domain == OPERATOR_DOMAIN:
            _give_inputs(node, _OUR_SCALES, names)
            node.overload = ""
        else:
            stock = True
            _make_stock(node)
            _give_inputs(node, _STOCK_SCALES, names)
        for name, part in zip(names, (scales.key, scales.value), strict=True):
            graph.initializer.append(numpy_helper.from_array(part[layer], name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if _PAST.fullmatch(value.name) or _PRESENT.fullmatch(value.name):
            value.type.tensor_type.elem_type = TensorProto.INT8
    # Bodies of the attention that is no longer there.
    kept = [body for body in model.functions if (body.domain, body.name) != (OPERATOR_DOMAIN, _OPERATOR)]
    del model.functions[:]
    model.functions.extend(kept)
    if stock and all(opset.domain != _MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    data: bytes = model.SerializeToString()
    return data


def rotations(path: Path, layers: int) -> list[Rotation]:
    """The rotation of each layer of the decoder graph in `path`.

    Raises:
        PackageError, UnsupportedError: as `int8_cache_graph`.
    """
    graph = _load(path).graph
    widths = {tensor.name: int(tensor.dims[-1]) for tensor in graph.initializer if tensor.dims}
    found = []
    for node in _attention(path, graph, layers):
        flags = {attribute.name: bool(attribute.i) for attribute in node.attribute}
        table = node.input[_COSINE] if len(node.input) > _COSINE else ""
        features = 2 * widths.get(table, 0) if flags.get("do_rotary") else 0
        found.append(Rotation(features, flags.get("rotary_interleaved", False)))
    return found


def _load(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if size > _MAX_GRAPH_BYTES:
            raise PackageError(f"{path}: {size} bytes, above the limit of {_MAX_GRAPH_BYTES} for an int8 cache")
        return onnx.load(path, load_external_data=False)
    except PackageError:
        raise
    except Exception as error:
        raise PackageError(f"{path}: cannot be read as an ONNX graph: {one_line(error)}") from None


def _attention(path: Path, graph: onnx.GraphProto, layers: int) -> Iterator[NodeProto]:
    """The attention node of each layer, in the order of layers."""
    by_layer: dict[int, NodeProto] = {}
    for node in graph.node:
        reads = [match for name in node.input if (match := _PAST.fullmatch(name))]
        if not reads:
            continue
        layer = int(reads[0][1])
        expected = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        if (
            node.op_type != _OPERATOR
            or node.domain not in (OPERATOR_DOMAIN, _MICROSOFT)
            or list(node.input[_PAST_KEY : _PAST_VALUE + 1]) != expected
            or len(reads) != 2
            or list(node.output[1:3]) != [f"present.{layer}.key", f"present.{layer}.value"]
            or layer in by_layer
            or _has_scales(node)
        ):
            raise _unsupported(path, f"node {_called(node)} reads {reads[0][0]} otherwise than such attention does")
        by_layer[layer] = node
    for layer in range(layers):
        if layer not in by_layer:
            raise _unsupported(path, f"no node reads past_key_values.{layer}.key")
        yield by_layer[layer]


def _has_scales(node: NodeProto) -> bool:
    """Whether keys and values are quantized already, or there are inputs of which nothing is known."""
    first = _OUR_SCALES if node.domain == OPERATOR_DOMAIN else _STOCK_SCALES
    given = any(node.input[first : first + 2]) or (node.domain == OPERATOR_DOMAIN and len(node.input) > first)
    return given or any(attribute.name in _STOCK_ATTRIBUTES for attribute in node.attribute)


def _make_stock(node: NodeProto) -> None:
    """ONNX Runtime's own operator, which has our attributes."""
    if node.domain == OPERATOR_DOMAIN:
        lengths = node.input[_OUR_LENGTHS] if len(node.input) > _OUR_LENGTHS else ""
        del node.input[_OUR_LENGTHS:]
        if lengths:
            _give_inputs(node, _STOCK_LENGTHS, [lengths])
        node.domain, node.overload = _MICROSOFT, ""
    node.attribute.extend(helper.make_attribute(name, value) for name, value in _STOCK_ATTRIBUTES.items())


def _give_inputs(node: NodeProto, first: int, names: list[str]) -> None:
    """Sets inputs from number `first` on; those between are left out."""
    node.input.extend([""] * (first + len(names) - len(node.input)))
    for index, name in enumerate(names, first):
        node.input[index] = name


def _called(node: NodeProto) -> str:
    return (node.name or node.op_type)[:120]


def _unsupported(path: Path, reason: str) -> UnsupportedError:
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in reason)
    return UnsupportedError(f"{path}: an int8 cache needs GroupQueryAttention in each layer: {text}; use float32")
