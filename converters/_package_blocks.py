"""Matrices of packages of stock and standard operators, which the manifest describes and not their nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bitnet_onnx.converters._package_matrices import MatrixReader, NamedArrays, PanelReader, Place
from bitnet_onnx.converters.onnx._emitter import dotted
from bitnet_onnx.converters.onnx._unpack import matmul_nbits_bits
from bitnet_onnx.converters.onnx.forms._codes import WIDE_BITS, block_size, raw_of
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.json_input import shown
from bitnet_onnx.package_format import Operators
from bitnet_onnx.packing import spread
from bitnet_onnx.policy import Weights, bits_of
from bitnet_onnx.quantized import ByteArray, FloatArray, Grid, QuantizedTensor

_HIGH: Final = "_high"


@dataclass(frozen=True, slots=True)
class _Stored:
    """How a matrix is stored.

    Attributes:
        grid: of its weights.
        four_bits: as one or two matrices of four bits.
        only_rows: rows are only looked up in it.
    """

    grid: Grid
    four_bits: bool
    only_rows: bool

    @property
    def bits(self) -> int:
        """Of a stored code."""
        return WIDE_BITS if self.four_bits else matmul_nbits_bits(self.grid)

    @property
    def parts(self) -> tuple[str, ...]:
        """Endings of the names of the matrices that are added."""
        return ("", _HIGH) if self.four_bits and self.grid.bits > WIDE_BITS else ("",)


class BlockReader:
    """Reads `[N, blocks]` of stock operators and `[K, N]` of standard ones.

    Args:
        arrays: of the package.
        manifest: of the package.
        where: its path, for messages.
        spec: what the decoder is.
        operators: stock or standard.

    Raises:
        PackageError: the manifest does not say what the matrices are.
    """

    def __init__(
        self,
        arrays: NamedArrays,
        manifest: Mapping[str, object],
        where: Path,
        spec: DecoderSpec,
        operators: Operators,
    ) -> None:
        self._arrays = arrays
        self._by_columns = operators is Operators.STANDARD
        self._stored: dict[str, _Stored] = {}
        layers = manifest.get("layers")
        for layer in layers if isinstance(layers, list) else []:
            fields = layer if isinstance(layer, dict) else {}
            role, weights = fields.get("role"), fields.get("weights")
            if not isinstance(role, str) or weights == Weights.FLOAT32:
                continue
            numbers = [fields.get(name) for name in ("zero_point", "group_size", "activation_bits")]
            if not all(type(number) is int for number in numbers):
                raise PackageError(
                    f"{where}: {shown(role)} has no zero_point, group_size and activation_bits: convert it again"
                )
            try:
                grid = Grid(bits_of(Weights(str(weights))), numbers[0], numbers[1])  # type: ignore[arg-type]
            except (ValueError, InputError) as error:
                raise PackageError(f"{where}: {shown(role)}: {error}") from error
            only_rows = role == "embed_tokens" and not spec.tie_word_embeddings
            four_bits = numbers[2] == 0 and not only_rows and not self._by_columns
            self._stored[role] = _Stored(grid, four_bits, only_rows)

    def holds(self, place: Place) -> bool:
        """Whether the manifest says so."""
        return place.role in self._stored

    def check(self, place: Place, columns: int) -> None:
        """By what the manifest says."""
        stored = self._stored[place.role]
        block = block_size(stored.grid, columns)
        blocks, total = -(-columns // block), place.total
        for part in stored.parts:
            name = dotted(place.path, f"weight{part}")
            if self._by_columns:
                width = -(-total * stored.bits // 8)
                self._arrays.demand(name, (columns, width), np.uint8)
                self._arrays.demand(f"{name}_scale", (blocks, width * 8 // stored.bits), np.float32)
            else:
                width = block * stored.bits // 8
                shape = (total, blocks * width) if stored.only_rows else (total, blocks, width)
                self._arrays.demand(name, shape, np.uint8)
                self._arrays.demand(f"{name}_scale", (total, blocks), np.float32)

    def rows(self, place: Place, columns: int, start: int, stop: int) -> QuantizedTensor:
        """Rows of a role.

        Raises:
            PackageError: a code is beyond the grid, or the blocks of a group have different scales.
        """
        stored = self._stored[place.role]
        grid, block = stored.grid, block_size(stored.grid, columns)
        first, last = place.start + start, place.start + stop
        name = dotted(place.path, "weight")
        read = self._columns if self._by_columns else self._rows
        parts = [read(f"{name}{part}", stored, columns, first, last) for part in stored.parts]
        raw = raw_of(parts, grid, four_bits=stored.four_bits)
        if raw.size and int(raw.max()) >= grid.levels:
            raise PackageError(f"{self._arrays.directory}: {shown(name)} holds a code that {grid.bits} bits do not")
        scales = self._scales(f"{name}_scale", -(-columns // block), first, last)
        step = grid.group_size // block or scales.shape[1]
        groups = scales[:, ::step]
        if not np.array_equal(np.repeat(groups, step, axis=1)[:, : scales.shape[1]], scales):
            raise PackageError(f"{self._arrays.directory}: {shown(name)} has several scales in a group")
        if not grid.group_size:
            groups = groups[:, 0]
            if np.all(groups == groups[:1]):
                groups = groups[:1]
        return QuantizedTensor(raw, np.ascontiguousarray(groups), grid)

    def _rows(self, name: str, stored: _Stored, columns: int, first: int, last: int) -> ByteArray:
        array = self._arrays.find(name)
        width = int(np.prod(array.shape[1:]))
        content = array.bytes(first * width, last * width).reshape(-1, width)
        return np.ascontiguousarray(spread(content, stored.bits)[:, :columns])

    def _columns(self, name: str, stored: _Stored, columns: int, first: int, last: int) -> ByteArray:
        array = self._arrays.find(name)
        width, per_byte = array.shape[1], 8 // stored.bits
        start, stop = first // per_byte, -(-last // per_byte)
        content = np.empty((columns, stop - start), np.uint8)
        for column in range(columns):
            content[column] = array.bytes(column * width + start, column * width + stop)
        skipped = first - start * per_byte
        raw = spread(content, stored.bits)[:, skipped : skipped + last - first]
        zero = 128 if stored.grid.bits == 6 else stored.grid.zero_point
        if zero == 1 << (stored.bits - 1):
            raw = raw ^ np.uint8(zero)
        return np.ascontiguousarray(raw.T)

    def _scales(self, name: str, blocks: int, first: int, last: int) -> FloatArray:
        """Scales of rows, `[rows, blocks]`."""
        array = self._arrays.find(name)
        if not self._by_columns:
            return array.floats(first * blocks, last * blocks).reshape(-1, blocks)
        width = array.shape[1]
        return np.stack([array.floats(block * width + first, block * width + last) for block in range(blocks)], axis=1)


def matrix_reader(arrays: NamedArrays, manifest: Mapping[str, object], where: Path, spec: DecoderSpec) -> MatrixReader:
    """What reads the quantized matrices of a package.

    Args:
        arrays: of the package.
        manifest: of the package.
        where: its path, for messages.
        spec: what the decoder is.

    Raises:
        PackageError: the manifest names unknown operators, or does not say what the matrices are.
    """
    operators = Operators.of(manifest, where)
    if operators is Operators.BITNET:
        return PanelReader(arrays)
    return BlockReader(arrays, manifest, where, spec, operators)
