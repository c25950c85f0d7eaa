"""A matrix in the package: codes and a table that MIL decompresses, and a factor that is applied afterwards.

What a linear layer reads is float16: a power of two times the integer codes, which is exact. The power keeps every sum
below the largest float16 for any input of the size that `_activations` gives; the scale itself stays float32 and
multiplies the sum. So neither scales nor inputs are rounded, and no sum overflows. Scales of groups cannot wait that
long: they are divided by a power of two for each row, and rounded to float16.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.coreml._activations import PEAK
from bitnet_onnx.converters.coreml._graph import Graph, mil_name
from bitnet_onnx.converters.coreml._tools import Value
from bitnet_onnx.converters.coreml._weight_file import WeightFile
from bitnet_onnx.converters.coreml.options import TernaryStorage
from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

_LARGEST: Final = 65504.0
#: Weights held as floats at once.
_CHUNK: Final = 1 << 22
_TERNARY_BITS: Final = 2
_NIBBLE_BITS: Final = 4
_TABLE_BITS: Final = 6
_TINY: Final = 1e-30


class Encoding(enum.Enum):
    """How a matrix is stored."""

    FLOAT = enum.auto()
    LUT = enum.auto()
    SPARSE = enum.auto()
    BLOCKS = enum.auto()


class Factor(enum.Enum):
    """What the products with a matrix are multiplied by."""

    NONE = enum.auto()
    ONE = enum.auto()
    ROWS = enum.auto()


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that has been written.

    Attributes:
        role: of the matrix.
        shape: `(N, K)`.
        encoding: how it is stored.
        factor_kind: whether there is a factor, and whether it is `[N]`.
        byte_unit: where codes are bytes without groups, what one step of them is in the decompressed matrix: rows can
            be looked up without decompressing all of it. Otherwise 0.
        bits: that it takes, all in all.
    """

    role: str
    shape: tuple[int, int]
    encoding: Encoding
    factor_kind: Factor
    byte_unit: float
    bits: int

    @property
    def name(self) -> str:
        """Of the decompressed matrix."""
        return f"{mil_name(self.role)}_weight"

    @property
    def codes(self) -> str:
        """Name of the constant that holds the codes."""
        return f"{mil_name(self.role)}_codes"

    @property
    def factor(self) -> str:
        """Name of the constant that holds the factor."""
        return f"{mil_name(self.role)}_factor"

    @property
    def table(self) -> str:
        """Name of the constant that holds the table or the scales of groups."""
        return f"{mil_name(self.role)}_table"

    @property
    def mask(self) -> str:
        """Name of the constant that tells which weights are not zero."""
        return f"{mil_name(self.role)}_mask"


def dense(graph: Graph, matrix: Matrix) -> Value:
    """The matrix as float16 `[N, K]`, before the factor."""
    return graph.once(matrix.name, lambda: _decompressed(graph, matrix))


def _decompressed(graph: Graph, matrix: Matrix) -> Value:
    ops = graph.ops
    match matrix.encoding:
        case Encoding.FLOAT:
            return graph.stored(matrix.name)
        case Encoding.LUT:
            indices, table = graph.stored(matrix.codes), graph.stored(matrix.table)
            return ops.constexpr_lut_to_dense(indices=indices, lut=table, name=matrix.name)
        case Encoding.SPARSE:
            mask, values = ops.constexpr_lut_to_sparse(
                indices_mask=graph.stored(matrix.mask),
                indices_nonzero_data=graph.stored(matrix.codes),
                lut=graph.stored(matrix.table),
                name=f"{matrix.name}_sparse",
            )
            return ops.constexpr_sparse_to_dense(nonzero_data=values, mask=mask, name=matrix.name)
        case Encoding.BLOCKS:
            data, scale = graph.stored(matrix.codes), graph.stored(matrix.table)
            return ops.constexpr_blockwise_shift_scale(data=data, scale=scale, name=matrix.name)


def write_codes(
    weights: WeightFile, role: str, tensor: QuantizedTensor, storage: TernaryStorage, *, looked_up: bool = False
) -> Matrix:
    """Write a quantized matrix.

    Args:
        weights: where it goes.
        role: of the matrix, no `.weight`.
        tensor: its codes.
        storage: of ternary codes that have no groups.
        looked_up: rows of it are, and nothing is ever multiplied with them.
    """
    grid, columns = tensor.grid, tensor.shape[1]
    most = max(grid.zero_point, grid.levels - 1 - grid.zero_point)
    unit = 1.0 if looked_up else power_below(_LARGEST / (PEAK * columns * most))
    if grid.group_size:
        steps, factor = _group_steps(tensor, unit)
    else:
        steps, factor = np.full((1, 1), unit, np.float32), tensor.scale / np.float32(unit)
        factor = factor[0] if factor.shape == (1,) else factor
    writer = _Writer(weights, role)
    writer.put("factor", np.asarray(factor), "fp32")
    if grid.is_ternary and storage is TernaryStorage.SPARSE and not grid.group_size:
        nonzero = tensor.raw != grid.zero_point
        if nonzero.any():
            writer.put("mask", nonzero, "uint1")
            writer.put("codes", tensor.raw[nonzero] > grid.zero_point, "uint1")
            writer.put("table", np.array([-unit, unit]).reshape(1, 1, 2, 1), "fp16")
            return writer.matrix(tensor.shape, Encoding.SPARSE, factor)
    if grid.bits == _TERNARY_BITS or (grid.bits == _TABLE_BITS and not grid.group_size):
        # Of ternary codes 0 never occurs: -1, 0 and 1 become the first three of four entries.
        lowest = 1 if grid.is_ternary else 0
        values = np.arange(lowest, lowest + grid.levels, dtype=np.float32) - grid.zero_point
        if grid.is_ternary:
            values[-1] = 0
        writer.put("codes", tensor.raw - np.uint8(lowest), f"uint{grid.bits}")
        writer.put("table", steps[:, :, None, None] * values[:, None], "fp16")
        return writer.matrix(tensor.shape, Encoding.LUT, factor)
    # MIL has integers of 4 and of 8 bits; a table for each group of 6-bit codes would take more than it saves.
    kind = "int4" if grid.bits == _NIBBLE_BITS else "int8"
    writer.put("codes", (tensor.raw - np.uint8(grid.zero_point)).view(np.int8), kind)
    writer.put("table", steps, "fp16")
    plain = kind == "int8" and not grid.group_size
    return writer.matrix(tensor.shape, Encoding.BLOCKS, factor, byte_unit=unit if plain else 0.0)


def write_floats(weights: WeightFile, role: str, tensors: Tensors) -> Matrix:
    """Write a matrix as float16.

    Raises:
        CheckpointError: a value is not finite.
    """
    rows, columns = tensors.shape(f"{role}.weight")
    largest = max(float(np.abs(part).sum(axis=1, dtype=np.float64).max()) for _, part in _parts(tensors, role))
    if not math.isfinite(largest):
        raise CheckpointError(f"{role}.weight holds a value that is not finite")
    unit = min(1.0, power_below(_LARGEST / (PEAK * max(largest, _TINY))))
    values = np.empty((rows, columns), np.float16)
    for start, part in _parts(tensors, role):
        values[start : start + len(part)] = part * np.float32(unit)
    writer = _Writer(weights, role)
    writer.put("weight", values, "fp16")
    factor = None
    if unit != 1:
        factor = np.array(1 / unit, np.float32)
        writer.put("factor", factor, "fp32")
    return writer.matrix((rows, columns), Encoding.FLOAT, factor)


def power_below(value: float) -> float:
    """The largest power of two that is not greater than a positive number."""
    return float(2.0 ** (math.frexp(value)[1] - 1))


def _parts(tensors: Tensors, role: str) -> Iterator[tuple[int, FloatArray]]:
    rows, columns = tensors.shape(f"{role}.weight")
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        yield start, tensors.read_rows(f"{role}.weight", start, min(start + step, rows))


def _group_steps(tensor: QuantizedTensor, unit: float) -> tuple[FloatArray, FloatArray]:
    """Steps of blocks for the table, `[N, blocks]`, and the factors of rows that were divided out of them.

    Blocks all have one size, and a short last group makes it the greatest that divides both.
    """
    columns, size = tensor.shape[1], tensor.grid.group_size
    block = math.gcd(size, columns)
    largest = np.abs(tensor.scale).max(axis=1)
    _, exponent = np.frexp(largest)
    factor = np.where(largest > 0, np.ldexp(np.float32(1), exponent), np.float32(1)).astype(np.float32)
    steps = tensor.scale / factor[:, None] * np.float32(unit)
    by_block = np.repeat(steps, size // block, axis=1)[:, : columns // block]
    return by_block, factor / np.float32(unit)


class _Writer:
    """Writes the constants of one matrix and adds up what they take."""

    def __init__(self, weights: WeightFile, role: str) -> None:
        self._weights = weights
        self._role = role
        self._bits = 0

    def put(self, part: str, array: npt.NDArray[np.generic], kind: str) -> None:
        self._bits += self._weights.put(f"{mil_name(self._role)}_{part}", array, kind)

    def matrix(
        self, shape: tuple[int, int], encoding: Encoding, factor: FloatArray | None, *, byte_unit: float = 0.0
    ) -> Matrix:
        kind = Factor.NONE if factor is None else Factor.ROWS if factor.shape else Factor.ONE
        return Matrix(self._role, shape, encoding, kind, byte_unit, self._bits)
