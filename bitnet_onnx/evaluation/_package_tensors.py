"""The tensors of a package by role, read out of its data file; nothing in it is trusted."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from bitnet_onnx.converters.onnx._emitter import dotted
from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.decoder import ATTENTION_INPUTS, MLP_INPUTS, DecoderSpec
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.evaluation._report import WeightCheck
from bitnet_onnx.package_format import ENGINE, MODEL, MODEL_DATA, OPERATOR_DOMAIN
from bitnet_onnx.packing import unpack, unpack_scale
from bitnet_onnx.quantized import FloatArray, Grid, QuantizedTensor
from bitnet_onnx.runtime._native_errors import one_line

_TYPES: Final[dict[int, np.dtype[np.generic]]] = {
    onnx.TensorProto.FLOAT: np.dtype("<f4"),
    onnx.TensorProto.UINT8: np.dtype(np.uint8),
}
#: Layers on one input that may stand in one node, and the name of that node.
_MERGED: Final = {"qkv_proj": ATTENTION_INPUTS, "gate_up_proj": MLP_INPUTS}
_GRID: Final = ("in_features", "out_features", "bits", "zero_point", "group_size")

Array = npt.NDArray[np.generic]


class PackageTensors:
    """Reads tensors by role.

    Args:
        directory: of the package.
        spec: what the decoder is.

    Raises:
        PackageError: the graph cannot be read.
    """

    def __init__(self, directory: Path, spec: DecoderSpec) -> None:
        self._path = directory / MODEL
        self._spec = spec
        self._shapes = dict(spec.tensors())
        graph = _load(self._path)
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._grids: dict[str, dict[str, int]] = {}
        for node in graph.node:
            if node.domain == OPERATOR_DOMAIN and node.op_type in {"BitLinear", "BitEmbedding"} and len(node.input) > 1:
                self._grids[node.input[1]] = {at.name: at.i for at in node.attribute if at.name in _GRID}
        data = directory / MODEL_DATA
        with data.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if data.stat().st_size else b""
        self._last: tuple[str, QuantizedTensor] | None = None

    def shape(self, role: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._shapes[role]

    def read(self, role: str) -> FloatArray:
        """A whole tensor as float32.

        Raises:
            PackageError: it is missing or of another shape.
        """
        matrix = role.removesuffix(".weight")
        if len(self._shapes[role]) == 2 and (quantized := self.quantized(matrix)) is not None:
            return quantized.dequantize()
        return self.copies(role)[0]

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` of a matrix as float32."""
        matrix = role.removesuffix(".weight")
        quantized = self.quantized(matrix)
        return self.copies(role)[0][start:stop] if quantized is None else quantized.rows(start, stop).dequantize()

    def quantized(self, role: str) -> QuantizedTensor | None:
        """The codes and scales of a matrix, or None where it is stored as floats.

        Raises:
            PackageError: they contradict the node that reads them.
        """
        path, rows = self._place(role)
        if f"{path}.scale" not in self._initializers:
            return None
        if self._last is None or self._last[0] != path:
            self._last = path, self._unpacked(path)
        return self._last[1].rows(rows.start, rows.stop)

    def is_master(self, _: str) -> bool:
        """What a package holds is never rounded again."""
        return False

    def copies(self, role: str) -> list[FloatArray]:
        """A float tensor as often as it is stored: each linear layer with a fused norm has that norm's weight.

        Raises:
            PackageError: it is missing or of another shape.
        """
        shape, found = self._shapes[role], []
        owner, kind = role.rsplit(".", 1)
        if len(shape) == 2:
            path, rows = self._place(owner)
            values = self._array(f"{path}.weight")
            # Linear layers are stored as MatMul reads them, tables as Gather does.
            found = [values[rows] if owner in {"embed_tokens", "embed_positions", "lm_head"} else values.T[rows]]
        elif owner.endswith(("_proj", "lm_head", "project_in", "project_out")):
            path, rows = self._place(owner)
            found = [self._array(f"{path}.{kind}")[rows]]
        else:
            names = [dotted(module_path(owner), kind)]
            if kind == "weight":
                names += [f"{path}.norm_weight" for path in self._readers(owner)]
            found = [self._array(name) for name in dict.fromkeys(names) if name in self._initializers]
        if not found:
            raise PackageError(f"{self._path}: the tensor {role} is missing")
        for values in found:
            if values.shape != shape or values.dtype != np.float32:
                raise PackageError(
                    f"{self._path}: the tensor {role} is {values.dtype}{list(values.shape)}: "
                    f"expected float32{list(shape)}"
                )
        return [values.astype(np.float32, copy=False) for values in found]

    def _readers(self, norm: str) -> list[str]:
        """Where the layers lie that may have taken over a norm."""
        layer, _, name = norm.rpartition(".")
        attention, mlp = (
            [f"{layer}.attn.{one}" for one in ATTENTION_INPUTS],
            [f"{layer}.mlp.{one}" for one in MLP_INPUTS],
        )
        match name:
            case "input_norm":
                # With one norm for both, the MLP reads it too.
                shared = f"{layer}.post_attention_norm.weight" not in self._shapes
                readers = attention + mlp if shared else attention
            case "post_attention_norm":
                readers = mlp
            case "sub_norm":
                readers = [f"{layer}.o_proj", f"{layer}.down_proj"]
            case "norm":
                readers = [layer] if layer else ["lm_head", "project_out"]
            case _:
                readers = []
        places = [self._place(reader)[0] for reader in readers if f"{reader}.weight" in self._shapes]
        if name == "norm" and not layer and self._spec.tie_word_embeddings:
            places.append("lm_head")
        return places

    def _place(self, role: str) -> tuple[str, slice]:
        """The prefix of a layer's initializers, and its rows in them."""
        parent, _, name = role.rpartition(".")
        count = self._shapes[f"{role}.weight"][0]
        for merged, members in _MERGED.items():
            path = dotted(module_path(parent), merged) if parent else ""
            if name in members and f"{path}.weight" in self._initializers:
                before = members[: members.index(name)]
                start = sum(self._shapes[f"{parent}.{one}.weight"][0] for one in before)
                return path, slice(start, start + count)
        return dotted(module_path(role), "").removesuffix("."), slice(0, count)

    def _unpacked(self, path: str) -> QuantizedTensor:
        where = f"{self._path}: {path}"
        grid = self._grids.get(f"{path}.weight", {})
        if missing := [name for name in _GRID if name not in grid]:
            raise PackageError(f"{where}: no node says what {', '.join(missing)} of its weights is")
        weight, scale = self._array(f"{path}.weight"), self._array(f"{path}.scale")
        if weight.dtype != np.uint8 or scale.dtype != np.float32:
            raise PackageError(f"{where}: weights are {weight.dtype} and scales {scale.dtype}: expected uint8, float32")
        rows, columns = grid["out_features"], grid["in_features"]
        try:
            levels = Grid(grid["bits"], grid["zero_point"], grid["group_size"])
            expected = -(-rows // 32), levels.groups(columns), 32
            if levels.group_size and scale.shape != expected:
                raise PackageError(f"{where}: scales are {list(scale.shape)}: expected {list(expected)}")
            raw = unpack(weight.view(np.uint8), rows, columns, levels)
            tensor = QuantizedTensor(raw, unpack_scale(scale.astype(np.float32), rows, levels), levels)
        except PackageError:
            raise
        except InputError as error:
            raise PackageError(f"{where}: {error}") from error
        return tensor.with_row_scales()

    def _array(self, name: str) -> Array:
        """An initializer, mapped from the data file where it lies there."""
        tensor = self._initializers.get(name)
        if tensor is None:
            raise PackageError(f"{self._path}: the initializer {name} is missing")
        dtype, shape = _TYPES.get(tensor.data_type), tuple(tensor.dims)
        if dtype is None or any(size < 0 for size in shape):
            raise PackageError(f"{self._path}: {name} has type {tensor.data_type} and shape {list(shape)}")
        count = int(np.prod(shape, dtype=object))
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            data: bytes | mmap.mmap = tensor.raw_data
            offset = 0
        else:
            fields = {entry.key: entry.value for entry in tensor.external_data}
            offset = int(fields["offset"]) if fields.get("offset", "0").isdecimal() else -1
            data = self._data
            if fields.get("location") != MODEL_DATA or offset < 0:
                raise PackageError(f"{self._path}: {name} does not lie in {MODEL_DATA}")
        if offset + count * dtype.itemsize > len(data):
            raise PackageError(f"{self._path}: {name} ends behind its data: {len(data)} bytes are there")
        values: Array = np.frombuffer(data, dtype, count, offset).reshape(shape)
        return values


def engine_differences(directory: Path) -> list[WeightCheck]:
    """Initializers of `engine.onnx` that are not those of `model.onnx`: small tensors stand in both files."""
    if not (directory / ENGINE).is_file():
        return []
    graphs = [_load(directory / name) for name in (MODEL, ENGINE)]
    model, engine = ({tensor.name: tensor for tensor in graph.initializer} for graph in graphs)
    return [
        WeightCheck(name, "", 0, problem=f"{ENGINE} and {MODEL} hold different tensors of this name")
        for name in sorted(model.keys() | engine.keys())
        if model.get(name) != engine.get(name)
    ]


def _load(path: Path) -> onnx.GraphProto:
    try:
        return onnx.load_model(str(path), load_external_data=False).graph
    except Exception as error:
        raise PackageError(f"{path}: not an ONNX graph: {one_line(error)}") from None
