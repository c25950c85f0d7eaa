"""Where a package keeps its matrices, and how one that is packed into panels is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bitnet_onnx.converters._package_graph import PackageGraph, PackedMatrix, StoredArray
from bitnet_onnx.converters.onnx._emitter import dotted
from bitnet_onnx.errors import PackageError
from bitnet_onnx.json_input import shown
from bitnet_onnx.packing import PANEL_ROWS, packed_shape, unpack, unpack_scale
from bitnet_onnx.quantized import QuantizedTensor


@dataclass(frozen=True, slots=True)
class Place:
    """Where the matrix or the bias of a role lies.

    Attributes:
        role: of the matrix.
        path: module path of the node, whose initializers are named after it.
        start: row of the node's matrix at which the role's rows start.
        total: rows of the node's matrix.
    """

    role: str
    path: str
    start: int
    total: int


@dataclass(frozen=True, slots=True)
class NamedArrays:
    """The tensors of a package by name; the directory is for messages."""

    directory: str
    graph: PackageGraph

    def find(self, name: str) -> StoredArray:
        """A tensor.

        Raises:
            PackageError: there is none of that name.
        """
        array = self.graph.arrays.get(name)
        if array is None:
            raise PackageError(f"{self.directory}: tensor {shown(name)} is missing")
        return array

    def demand(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        """Check what a tensor is.

        Raises:
            PackageError: it has another shape or type.
        """
        array = self.find(name)
        if array.shape != shape or array.dtype != dtype:
            raise PackageError(
                f"{self.directory}: tensor {shown(name)} is {array.dtype}{list(array.shape)}: "
                f"the configuration demands {np.dtype(dtype)}{list(shape)}"
            )


class MatrixReader(Protocol):
    """Reads quantized matrices out of a package."""

    def holds(self, place: Place) -> bool:
        """Whether codes lie there and not floats."""
        ...

    def check(self, place: Place, columns: int) -> None:
        """Refuse with a `PackageError` what has another size than the configuration demands."""
        ...

    def rows(self, place: Place, columns: int, start: int, stop: int) -> QuantizedTensor:
        """Rows `start` to `stop` of a role."""
        ...


class PanelReader:
    """Reads panels, whose nodes say what they hold."""

    def __init__(self, arrays: NamedArrays) -> None:
        self._arrays = arrays

    def holds(self, place: Place) -> bool:
        """Whether one of our operators stands on it."""
        return dotted(place.path, "weight") in self._arrays.graph.matrices

    def check(self, place: Place, columns: int) -> None:
        """By what the nodes say."""
        name, packed = dotted(place.path, "weight"), self._packed(place)
        if (packed.out_features, packed.in_features) != (place.total, columns):
            raise PackageError(
                f"{self._arrays.directory}: {shown(name)} is said to be [{packed.out_features}, {packed.in_features}]: "
                f"the configuration demands [{place.total}, {columns}]"
            )
        self._arrays.demand(name, packed_shape(place.total, columns, packed.grid.bits), np.uint8)
        scale = dotted(place.path, "scale")
        if packed.grid.group_size:
            shape = (-(-place.total // PANEL_ROWS), packed.grid.groups(columns), PANEL_ROWS)
            self._arrays.demand(scale, shape, np.float32)
        elif self._arrays.find(scale).shape != (1,):
            self._arrays.demand(scale, (place.total,), np.float32)

    def rows(self, place: Place, columns: int, start: int, stop: int) -> QuantizedTensor:
        """Whole panels of 32 rows are read for them."""
        packed = self._packed(place)
        first, last = (place.start + start) // PANEL_ROWS, -(-(place.start + stop) // PANEL_ROWS)
        rows = min(last * PANEL_ROWS, packed.out_features) - first * PANEL_ROWS
        array = self._arrays.find(dotted(place.path, "weight"))
        panel = array.shape[1] * array.shape[2]
        content = array.bytes(first * panel, last * panel).reshape(-1, *array.shape[1:])
        raw = unpack(content, rows, columns, packed.grid)
        scale = self._arrays.find(dotted(place.path, "scale"))
        if packed.grid.group_size:
            panel = scale.shape[1] * scale.shape[2]
            of_panels = scale.floats(first * panel, last * panel).reshape(-1, *scale.shape[1:])
            values = unpack_scale(of_panels, rows, packed.grid)
        elif scale.shape == (1,):
            values = scale.floats(0, 1)
        else:
            values = scale.floats(first * PANEL_ROWS, first * PANEL_ROWS + rows)
        offset = place.start + start - first * PANEL_ROWS
        part = QuantizedTensor(raw, values, packed.grid).rows(offset, offset + stop - start)
        return QuantizedTensor(np.ascontiguousarray(part.raw), np.ascontiguousarray(part.scale), part.grid)

    def _packed(self, place: Place) -> PackedMatrix:
        return self._arrays.graph.matrices[dotted(place.path, "weight")]
