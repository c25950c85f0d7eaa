"""The tensors of a package by role: the way back from what the emitter names and merges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from bitnet_onnx.converters._package_graph import StoredArray
from bitnet_onnx.converters._package_matrices import MatrixReader, NamedArrays, Place
from bitnet_onnx.converters.onnx._emitter import dotted
from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.decoder import ATTENTION_INPUTS, MLP_INPUTS, DecoderSpec
from bitnet_onnx.errors import PackageError
from bitnet_onnx.json_input import shown
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

#: Matrices whose rows are looked up, or that are shared with one that is: stored `[N, K]` as floats, others `[K, N]`.
_TABLES: Final = frozenset({"embed_tokens", "lm_head", "embed_positions"})


class PackageTensors:
    """Reads tensors by role out of a package, after checking that all are there in the right size.

    Args:
        arrays: what the package holds.
        spec: what there must be.
        reader: of its quantized matrices.

    Raises:
        PackageError: a tensor is missing, or has another size than the specification demands.
    """

    def __init__(self, arrays: NamedArrays, spec: DecoderSpec, reader: MatrixReader) -> None:
        self._directory = arrays.directory
        self._graph = arrays.graph
        self._arrays = arrays
        self._reader = reader
        self._shapes = dict(spec.tensors())
        self._places: dict[str, Place] = {}
        for role, shape in self._shapes.items():
            module, _, kind = role.rpartition(".")
            if kind == "weight" and len(shape) == 2:
                self._places[module] = self._place(module)
                self._check_matrix(module)
        # Once the matrices are known: a vector that stands on none of them is part of a norm.
        self._vectors = {role: self._vector(role, shape[0]) for role, shape in self._shapes.items() if len(shape) == 1}

    def shape(self, role: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._shapes[role]

    def read(self, role: str) -> FloatArray:
        """A whole tensor as float32, dequantized if need be."""
        shape = self._shapes[role]
        if len(shape) == 2:
            return self.read_rows(role, 0, shape[0])
        return self.copies(role)[0]

    def path(self, role: str) -> str:
        """Module path of the linear layer that holds the matrix `role`, alone or with others."""
        return self._places[role].path

    def copies(self, role: str) -> list[FloatArray]:
        """A vector as often as the package holds it: each layer that took over a norm has that norm's weight."""
        size = self._shapes[role][0]
        return [array.floats(start, start + size) for array, start in self._vectors[role]]

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` of a matrix as float32, dequantized if need be."""
        module = role.removesuffix(".weight")
        place = self._places[module]
        columns = self._shapes[role][1]
        if self._reader.holds(place):
            return self._reader.rows(place, columns, start, stop).dequantize()
        array = self._arrays.find(dotted(place.path, "weight"))
        if module in _TABLES:
            return array.floats(start * columns, stop * columns).reshape(-1, columns)
        rows = np.empty((stop - start, columns), np.float32)
        for column in range(columns):
            first = column * place.total + place.start
            rows[:, column] = array.floats(first + start, first + stop)
        return rows

    def quantized(self, role: str) -> QuantizedTensor | None:
        """The codes and scales of the matrix `role`, or None where the package holds its floats."""
        place = self._places[role]
        if not self._reader.holds(place):
            return None
        rows, columns = self._shapes[f"{role}.weight"]
        tensor = self._reader.rows(place, columns, 0, rows)
        merged = rows != place.total
        if merged and not tensor.grid.group_size and np.all(tensor.scale == tensor.scale[0]):
            # Matrices that share a node have a scale a row, whatever each had before.
            return QuantizedTensor(tensor.raw, tensor.scale[:1].copy(), tensor.grid)
        return tensor

    def is_master(self, _: str, /) -> bool:
        """Never: what a package holds is rounded already, or was meant to stay float."""
        return False

    def _place(self, module: str) -> Place:
        """Where a matrix lies: under its own name, or side by side with others that read the same input."""
        rows = self._shapes[f"{module}.weight"][0]
        path = module_path(module)
        if dotted(path, "weight") in self._graph.arrays:
            return Place(module, path, 0, rows)
        merged = _merged(module)
        if merged is not None:
            joint, members = merged
            if dotted(joint, "weight") in self._graph.arrays:
                sizes = {name: self._shapes[f"{name}.weight"][0] for name in members}
                before = members[: members.index(module)]
                return Place(module, joint, sum(sizes[name] for name in before), sum(sizes.values()))
        raise PackageError(f"{self._directory}: tensor {shown(dotted(path, 'weight'))} is missing")

    def _check_matrix(self, module: str) -> None:
        place, columns = self._places[module], self._shapes[f"{module}.weight"][1]
        if self._reader.holds(place):
            self._reader.check(place, columns)
            return
        shape = (place.total, columns) if module in _TABLES else (columns, place.total)
        self._arrays.demand(dotted(place.path, "weight"), shape, np.float32)

    def _vector(self, role: str, size: int) -> list[tuple[StoredArray, int]]:
        """The arrays that hold a norm's weight or a bias, and the element at which it starts."""
        module, _, kind = role.rpartition(".")
        place = self._places.get(module)
        if kind == "bias" and place is not None:
            name = dotted(place.path, "bias")
            self._arrays.demand(name, (place.total,), np.float32)
            return [(self._arrays.find(name), place.start)]
        own = dotted(module_path(module), kind)
        users = self._users(module) if kind == "weight" else ()
        names = dict.fromkeys([own, *(dotted(user, "norm_weight") for user in users)])
        found = [name for name in names if name in self._graph.arrays]
        for name in found:
            self._arrays.demand(name, (size,), np.float32)
        if not found:
            raise PackageError(f"{self._directory}: tensor {shown(own)} is missing")
        return [(self._arrays.find(name), 0) for name in found]

    def _users(self, norm: str) -> Iterator[str]:
        """Paths of the nodes that may have taken the norm over."""
        branch, _, name = norm.rpartition(".")
        if norm == "norm":
            # The head's node has the head's name, even on the embedding's matrix.
            yield from (module_path("project_out"), module_path("lm_head"))
            return
        attention, mlp = (
            [f"{branch}.attn.{part}" for part in ATTENTION_INPUTS],
            [f"{branch}.mlp.{part}" for part in MLP_INPUTS],
        )
        # A block without a norm of the MLP's own gives it that of attention.
        shared = f"{branch}.post_attention_norm.weight" not in self._shapes
        users = {
            "input_norm": attention + mlp if shared else attention,
            "post_attention_norm": mlp,
            "sub_norm": [f"{branch}.o_proj", f"{branch}.down_proj"],
            "norm": [branch],
        }
        yield from (self._places[user].path for user in users.get(name, []) if user in self._places)


def _merged(module: str) -> tuple[str, list[str]] | None:
    """The joint node that may hold a matrix, and the matrices in it in their order."""
    branch, _, name = module.rpartition(".")
    for joint, parts in (("qkv_proj", ATTENTION_INPUTS), ("gate_up_proj", MLP_INPUTS)):
        if name in parts:
            return module_path(f"{branch}.{joint}"), [f"{branch}.{part}" for part in parts]
    return None
