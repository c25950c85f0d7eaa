"""The graph file of a package: which tensors it has, where their bytes lie, and which grid a packed one is on.

A package may come from anyone. The file is walked field by field and each node or tensor is parsed alone, so that the
cost of a hostile one is bounded by its size; nothing outside `model.onnx` and `model.onnx.data` is ever read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.errors import BitnetOnnxError, PackageError
from bitnet_onnx.json_input import shown
from bitnet_onnx.package_format import MODEL_DATA, OLDEST_OPERATOR_VERSION, OPERATOR_DOMAIN, OPERATOR_VERSION
from bitnet_onnx.quantized import ByteArray, FloatArray, Grid

#: A hundred layers whose norms stand in the file take some 20 MB.
MAX_GRAPH: Final = 1 << 27
#: Of one node, and of one tensor with its data; the writer puts tensors of 16 KiB and more into the data file.
_MAX_PART: Final = 1 << 16
_MAX_PARTS: Final = 200_000
_MAX_DIMENSIONS: Final = 4

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 1, 5, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_OPERATORS: Final = frozenset({"BitLinear", "BitEmbedding"})
_FLOAT: Final[np.dtype[np.generic]] = np.dtype("<f4")
_BYTE: Final[np.dtype[np.generic]] = np.dtype(np.uint8)
#: Bits of an element of the types that weights have.
_BITS: Final = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT2: 2,
    onnx.TensorProto.INT2: 2,
}


@dataclass(frozen=True, slots=True)
class StoredArray:
    """A tensor of float32, or of integers of a byte and less as the bytes that hold them; its place has been checked.

    Attributes:
        name: of the initializer.
        shape: its dimensions, the last one in bytes where integers are smaller than one.
        dtype: float32 or uint8.
        file: that holds it.
        offset: of its first byte in there.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    file: BinaryFile
    offset: int

    def floats(self, start: int, stop: int) -> FloatArray:
        """Elements `start` to `stop` of a float32 tensor; NaN and infinity are refused.

        Raises:
            PackageError: it holds something else.
        """
        if self.dtype != np.float32:
            raise PackageError(f"{self.file.path}: tensor {shown(self.name)} is {self.dtype}: expected float32")
        values = np.empty(stop - start, np.float32)
        self.file.read_into(self.offset + 4 * start, values)
        if not np.isfinite(values).all():
            raise PackageError(f"{self.file.path}: tensor {shown(self.name)} holds a value that is not finite")
        return values

    def bytes(self, start: int, stop: int) -> ByteArray:
        """Elements `start` to `stop` of a uint8 tensor.

        Raises:
            PackageError: it holds something else.
        """
        if self.dtype != np.uint8:
            raise PackageError(f"{self.file.path}: tensor {shown(self.name)} is {self.dtype}: expected uint8")
        values = np.empty(stop - start, np.uint8)
        self.file.read_into(self.offset + start, values)
        return values


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """What the nodes on a packed matrix say of it: its size `[out_features, in_features]` and its grid."""

    out_features: int
    in_features: int
    grid: Grid


@dataclass(frozen=True, slots=True)
class PackageGraph:
    """Tensors of a package by the names of their initializers, and what packed ones hold by that of the weight."""

    arrays: dict[str, StoredArray]
    matrices: dict[str, PackedMatrix]


def read_graph(model: BinaryFile, data: BinaryFile) -> PackageGraph:
    """Read the initializers and the operators of a package.

    Args:
        model: `model.onnx`.
        data: `model.onnx.data`.

    Raises:
        PackageError: the file is larger than `MAX_GRAPH`, is no ONNX graph, or names bytes that are not there.
    """
    if not 0 < model.size <= MAX_GRAPH:
        raise PackageError(f"{model.path}: {model.size} bytes, expected 1 to {MAX_GRAPH}")
    content = model.read(0, model.size)
    graph = PackageGraph({}, {})
    count = 0
    for number, start, stop in _fields(content, 0, len(content), model):
        if number != _MODEL_GRAPH:
            continue
        for part, first, last in _fields(content, start, stop, model):
            count += 1
            if count > _MAX_PARTS:
                raise PackageError(f"{model.path}: more than {_MAX_PARTS} nodes and tensors")
            if part in {_GRAPH_NODE, _GRAPH_INITIALIZER} and last - first > _MAX_PART:
                raise PackageError(
                    f"{model.path}: a node or tensor of {last - first} bytes at byte {first}, the limit is {_MAX_PART}"
                )
            try:
                if part == _GRAPH_INITIALIZER:
                    _add_array(graph, content, first, last, model, data)
                elif part == _GRAPH_NODE:
                    _add_node(graph, onnx.NodeProto.FromString(content[first:last]), model)
            except DecodeError as error:
                raise PackageError(f"{model.path}: broken at byte {first}: not an ONNX graph") from error
    return graph


def _fields(content: bytes, start: int, stop: int, model: BinaryFile) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of every length-delimited field of a message (protobuf wire format)."""
    at = start
    while at < stop:
        key, at = _varint(content, at, stop, model)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(content, at, stop, model)
            continue
        if kind == _BYTES:
            size, at = _varint(content, at, stop, model)
        elif kind in {_FIXED32, _FIXED64}:
            size = 4 if kind == _FIXED32 else 8
        else:
            raise PackageError(f"{model.path}: broken at byte {at}: not an ONNX graph")
        if size > stop - at:
            raise PackageError(f"{model.path}: a field of {size} bytes at byte {at}, where {stop - at} are left")
        if kind == _BYTES:
            yield key >> 3, at, at + size
        at += size


def _varint(content: bytes, at: int, stop: int, model: BinaryFile) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise PackageError(f"{model.path}: broken at byte {at}: not an ONNX graph")


def _add_array(graph: PackageGraph, content: bytes, start: int, stop: int, model: BinaryFile, data: BinaryFile) -> None:
    tensor = onnx.TensorProto.FromString(content[start:stop])
    where = f"{model.path}: tensor {shown(tensor.name)}"
    if tensor.name in graph.arrays:
        raise PackageError(f"{where}: appears twice")
    bits = _BITS.get(tensor.data_type)
    if bits is None:  # shapes and axes, which hold no weights
        return
    dtype, shape = _FLOAT if bits == 32 else _BYTE, tuple(tensor.dims)
    if len(shape) > _MAX_DIMENSIONS or not all(0 < size < 1 << 40 for size in shape):
        raise PackageError(f"{where}: shape {list(shape)[:8]} is impossible")
    if bits < 8:
        if not shape or shape[-1] * bits % 8:
            raise PackageError(f"{where}: rows of shape {list(shape)} end within a byte")
        shape = (*shape[:-1], shape[-1] * bits // 8)
    nbytes = math.prod(shape) * dtype.itemsize
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        file, offset, length = data, *_external(tensor, where)
        if offset + length > data.size:
            raise PackageError(f"{where}: ends at byte {offset + length} of {MODEL_DATA}, which has {data.size}")
    else:
        inline = [place[1:] for place in _fields(content, start, stop, model) if place[0] == _TENSOR_RAW_DATA]
        file, (offset, end) = model, inline[-1] if inline else (start, start)
        length = end - offset
    if length != nbytes:
        raise PackageError(f"{where}: {length} bytes, shape {list(shape)} of {dtype} takes {nbytes}")
    graph.arrays[tensor.name] = StoredArray(tensor.name, shape, dtype, file, offset)


def _external(tensor: onnx.TensorProto, where: str) -> tuple[int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if location != MODEL_DATA:
        raise PackageError(f"{where}: its data is said to lie in {shown(location)}: only {MODEL_DATA} is read")
    numbers = []
    for key in ("offset", "length"):
        text = entries.get(key, "")
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise PackageError(f"{where}: external data {key} is {shown(text)}: expected a number of bytes")
        numbers.append(int(text))
    return numbers[0], numbers[1]


def _add_node(graph: PackageGraph, node: onnx.NodeProto, model: BinaryFile) -> None:
    if node.domain != OPERATOR_DOMAIN or node.op_type not in _OPERATORS or len(node.input) < 3:
        return
    values = {attribute.name: attribute.i for attribute in node.attribute}
    where = f"{model.path}: node {shown(node.name)}"
    version = values.get("operator_version", 1)
    if not OLDEST_OPERATOR_VERSION <= version <= OPERATOR_VERSION:
        raise PackageError(
            f"{where}: operator_version is {version}, this version of bitnet-onnx reads up to "
            f"{OPERATOR_VERSION}; update bitnet-onnx"
        )
    try:
        grid = Grid(values["bits"], values["zero_point"], values["group_size"])
        matrix = PackedMatrix(values["out_features"], values["in_features"], grid)
    except KeyError as error:
        raise PackageError(f"{where}: attribute {error.args[0]} is missing") from error
    except BitnetOnnxError as error:
        raise PackageError(f"{where}: {error}") from error
    if graph.matrices.setdefault(node.input[1], matrix) != matrix:
        raise PackageError(f"{where}: says of {shown(node.input[1])} what another node contradicts")
