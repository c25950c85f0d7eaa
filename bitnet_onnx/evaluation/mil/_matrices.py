"""The tensors of a package of ours by role: codes and steps as they are stored, and the decoder that they make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.converters.coreml._graph import mil_name
from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation._linear import Linear
from bitnet_onnx.evaluation.mil._call import Call, Room, Value
from bitnet_onnx.evaluation.mil._stored import Dense, Palettized, Scaled, Sparse, Stored, dense, spread, steps
from bitnet_onnx.evaluation.mil._types import Array, Element
from bitnet_onnx.evaluation.mil.operations import OPERATIONS
from bitnet_onnx.evaluation.mil.package import Package
from bitnet_onnx.evaluation.mil.program import Operation
from bitnet_onnx.integer import integer_grid
from bitnet_onnx.policy import Precision, Weights
from bitnet_onnx.quantized import TERNARY, FloatArray, Grid, QuantizedTensor

_BITS: Final = {Weights.INT2: 2, Weights.INT4: 4, Weights.INT6: 6, Weights.INT8: 8}
#: Constants that are made of constants that are made of constants: a sparse matrix takes two.
_MAX_DEPTH: Final = 8
_ROOM: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix as it is stored: `steps * codes * factor`.

    Attributes:
        shape: `(N, K)`.
        stored: its dense form, without the factor; the codes by themselves where `unknown_step`.
        steps: float32 `[N or 1, blocks]`, the value of one integer in the dense form; None for floats.
        factor: float32 `[N]` or `[]`, what products are multiplied with.
        unknown_step: only its codes have a name, the step stands somewhere in the program.
    """

    shape: tuple[int, int]
    stored: Stored
    steps: Array | None
    factor: Array
    unknown_step: bool = False

    def codes(self, start: int, stop: int) -> Array:
        """Integers of some rows, int16.

        Raises:
            PackageError: a value is no multiple of its step.
        """
        if self.steps is None:
            raise ValueError("floats have no codes")
        stored = self.stored
        values: Array
        if isinstance(stored, Scaled):
            values = stored.data.rows(start, stop).astype(np.float32)
            if stored.offset is not None:
                values -= spread(stored.offset, self.shape, start, stop - start)
        elif isinstance(stored, Palettized | Sparse):
            unit = spread(self.steps, self.shape, start, stop - start)
            values = np.asarray(stored.rows(start, stop) / np.where(unit == 0, np.float32(1), unit))
        else:
            values = stored.rows(start, stop)
        codes = np.rint(values)
        if not np.array_equal(codes, values):
            raise PackageError(f"rows {start} to {stop} hold values that are no multiples of their steps")
        return codes.astype(np.int16)

    def scales(self) -> Array:
        """The value of one integer, float32 `[N, blocks]`."""
        if self.steps is None or self.unknown_step:
            raise ValueError("no steps")
        factor = np.broadcast_to(self.factor, (self.shape[0],))
        return np.asarray(np.broadcast_to(self.steps, (self.shape[0], self.steps.shape[1])) * factor[:, None])

    def rows(self, start: int, stop: int) -> FloatArray:
        """The weights, float32."""
        factor = self.factor[start:stop, None] if self.factor.ndim else self.factor
        return np.asarray(self.stored.rows(start, stop) * factor, np.float32)


class PackageMatrices:
    """Finds the tensors of a decoder in a program.

    Args:
        package: that is open.
        function: whose constants are looked at.
    """

    def __init__(self, package: Package, function: str) -> None:
        self._package = package
        self._function = package.program.functions[function]
        self._where = str(package.program.path)
        #: Steps that stand somewhere in the program, by role: a table that is only looked up has its codes alone.
        self.units: dict[str, float] = {}
        self._made: dict[str, Operation] = {
            operation.outputs[-1].name: operation
            for operation in self._function.operations
            if operation.outputs and (operation.type == "const" or operation.type.startswith("constexpr_"))
        }
        self._all = {output.name: o for o in self._made.values() for output in o.outputs}

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def tensor(self, role: str) -> Array:
        """A norm or bias, `layers.0.input_norm.weight`, dense.

        Raises:
            PackageError: there is none.
        """
        return dense(self._stored(mil_name(role)))

    def matrix(self, role: str) -> StoredMatrix:
        """A matrix, `layers.0.attn.q_proj`.

        Raises:
            PackageError: there is none, or it is stored in no way that is known.
        """
        name = mil_name(role)
        factor = np.ones((), np.float32)
        if f"{name}_factor" in self:
            factor = np.asarray(self._value(f"{name}_factor").data, np.float32)
        known = f"{name}_weight" in self
        stored = self._stored(f"{name}_weight" if known else f"{name}_codes")
        if len(stored.shape) != 2 or factor.shape not in [(), (stored.shape[0],)]:
            raise PackageError(f"{self._where}: {name} is {list(stored.shape)} with a factor of {list(factor.shape)}")
        shape = stored.shape[0], stored.shape[1]
        if not known:
            unit = self.units.get(role)
            if unit is None:
                return StoredMatrix(shape, stored, np.ones((1, 1), np.float32), factor, unknown_step=True)
            step = np.full((1, 1), unit, np.float32)
            return StoredMatrix(shape, Scaled(stored, step, None, Element.FLOAT32), step, factor)
        return StoredMatrix(shape, stored, _steps(stored), factor)

    def _stored(self, name: str) -> Stored:
        value = self._value(name)
        if isinstance(value.data, tuple) or not value.shape:
            raise PackageError(f"{self._where}: {name} is no tensor with dimensions")
        return Dense(value.data, value.element) if isinstance(value.data, np.ndarray) else value.data

    def _value(self, name: str, depth: int = 0) -> Value:
        operation = self._all.get(name)
        if operation is None or depth > _MAX_DEPTH:
            raise PackageError(
                f"{self._where}: there is no constant {name[:80]!r}: is this the package of another model?"
            )
        if operation.type == "const":
            return self._package.constant(operation.attributes["val"], name)
        known = OPERATIONS.get(operation.type)
        if known is None:
            raise PackageError(f"{self._where}: {name[:80]!r} is made by {operation.type}, which is not known here")
        values = {
            parameter: [
                self._value(one, depth + 1) if isinstance(one, str) else self._package.constant(one, name)
                for one in bindings
            ]
            for parameter, bindings in operation.inputs.items()
        }
        call = Call(operation, values, self._function.opset, Room(_ROOM), lambda array, _, __: array)
        result = known.run(call)
        made = result if isinstance(result, tuple) else (result,)
        names = [output.name for output in operation.outputs]
        data = made[names.index(name)]
        return Value(data, Element.FLOAT32 if isinstance(data, np.ndarray) else data.element)


def _steps(stored: Stored) -> Array | None:
    if isinstance(stored, Scaled):
        return stored.scale
    table = stored.palette.values if isinstance(stored, Palettized) else None
    if isinstance(stored, Sparse):
        table = None if stored.data.palette is None else stored.data.palette.values
    if table is None:
        return None
    # The smallest value of each table that is not zero: every grid has a one. Its first integer is below zero.
    magnitude = np.where(table == 0, np.float32(np.inf), np.abs(table)).min(axis=-1)
    return np.where(np.isinf(magnitude), np.float32(0), np.where(table[..., 0] > 0, -magnitude, magnitude))


def grid_of(precision: Precision) -> Grid:
    """The integers that a precision has."""
    if precision.weights is Weights.TERNARY:
        return Grid(TERNARY.bits, TERNARY.zero_point, precision.group_size)
    return integer_grid(_BITS[precision.weights], precision.group_size)


class PackageDecoder:
    """The decoder that a package holds, for the reference to run: its tensors, and how each matrix is applied.

    Args:
        matrices: of the package.
        shapes: of all tensors, by role.
        precisions: by role.
        context_rows: the first row and the number of rows of the table of positions that the package has.
        floats: leave activations as floats whatever is recorded.
    """

    def __init__(
        self,
        matrices: PackageMatrices,
        shapes: Mapping[str, tuple[int, ...]],
        precisions: Mapping[str, Precision],
        context_rows: tuple[int, int],
        *,
        floats: bool = False,
    ) -> None:
        self._floats = floats
        self._matrices = matrices
        self._shapes = shapes
        self._precisions = precisions
        self._context_rows = context_rows
        self._last: tuple[str, QuantizedTensor | None] = ("", None)

    def shape(self, role: str) -> tuple[int, ...]:
        """That of the source."""
        return self._shapes[role]

    def read(self, role: str) -> FloatArray:
        """A whole tensor as float32."""
        if role == "embed_positions.weight":
            first, count = self._context_rows
            table = np.zeros(self._shapes[role], np.float32)
            table[first : first + count] = self._matrices.tensor(role)
            return table
        if len(self._shapes[role]) > 1:
            return self.read_rows(role, 0, self._shapes[role][0])
        return np.asarray(self._matrices.tensor(role), np.float32)

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        """Rows of a matrix as float32."""
        return self._matrices.matrix(role.removesuffix(".weight")).rows(start, stop)

    def quantized(self, role: str) -> QuantizedTensor | None:
        """Codes and scales out of the package; those that were asked for last are kept."""
        if self._last[0] != role:
            self._last = role, self._quantized(role)
        return self._last[1]

    def is_master(self, role: str) -> bool:  # noqa: ARG002 - of no package
        """Never: matrices are rounded already."""
        return False

    def linear(self, role: str) -> Linear:
        """As the package applies it: with 16 bits it leaves activations as they are, which half precision rounds."""
        quantized = self.quantized(role)
        bits = self._precisions[role].activation_bits
        rounds = quantized is not None and bits == 8 and not self._floats
        return Linear(quantized, bits if rounds else 0)

    def _quantized(self, role: str) -> QuantizedTensor | None:
        precision, matrix = self._precisions[role], self._matrices.matrix(role)
        if matrix.steps is None or precision.weights is Weights.FLOAT32 or matrix.unknown_step:
            return None
        grid = grid_of(precision)
        rows, columns = matrix.shape
        raw = np.empty((rows, columns), np.uint8)
        parts = steps(matrix.shape)
        for start in parts:
            stop = min(start + parts.step, rows)
            raw[start:stop] = matrix.codes(start, stop) + grid.zero_point
        scales = matrix.scales()
        if not grid.group_size:
            return QuantizedTensor(raw, np.ascontiguousarray(scales[:, 0], np.float32), grid)
        # Blocks may be smaller than groups, but no block lies in two of them.
        each = columns // scales.shape[1]
        first = np.arange(grid.groups(columns)) * (grid.group_size // math.gcd(each, grid.group_size))
        return QuantizedTensor(raw, np.ascontiguousarray(scales[:, first], np.float32), grid)
