"""What an operation sees of the program: its inputs by parameter, checked, and the room that it may take."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation.mil._stored import Dense, Stored, dense
from bitnet_onnx.evaluation.mil._types import Array, Element, Kind
from bitnet_onnx.evaluation.mil.program import Operation
from bitnet_onnx.json_input import shown

_MAX_LISTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Value:
    """What a name stands for while a function runs.

    Attributes:
        data: an array in the type that is computed with, weights as they are stored, texts, or the name of a state.
        element: as the program declares it.
    """

    data: Array | Stored | tuple[str, ...]
    element: Element

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a tensor; texts have none."""
        return () if isinstance(self.data, tuple) else self.data.shape


class Room:
    """Bytes that arrays of one run may take.

    Args:
        limit: how many.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def has(self, count: int) -> bool:
        """Whether so many more bytes fit."""
        return self.used + count <= self.limit


class Call:
    """One operation on its inputs.

    Args:
        operation: which.
        values: what its parameters are bound to; attributes as well.
        opset: whose rules hold.
        room: for its results.
        round_inner: what hardware does to results within the operation, such as scores of attention; see `inner`.
    """

    def __init__(
        self,
        operation: Operation,
        values: Mapping[str, Sequence[Value]],
        opset: int,
        room: Room,
        round_inner: Callable[[Array, Element, str], Array],
    ) -> None:
        self.operation = operation
        self.opset = opset
        self._values = values
        self._room = room
        self._round_inner = round_inner

    def fail(self, problem: str) -> PackageError:
        """An error that names the operation."""
        return PackageError(f"{self.operation.type} {shown(self.operation.name)}: {problem}")

    def has(self, parameter: str) -> bool:
        """Whether a parameter is bound."""
        return bool(self._values.get(parameter))

    def value(self, parameter: str) -> Value:
        """What a parameter is bound to."""
        values = self._values.get(parameter, ())
        if len(values) != 1:
            raise self.fail(f"{shown(parameter)} is bound to {len(values)} values, expected one")
        return values[0]

    def element(self, parameter: str) -> Element:
        """The declared type of elements."""
        return self.value(parameter).element

    def stored(self, parameter: str) -> Stored:
        """A tensor of at least one dimension, weights as they are stored."""
        value = self.value(parameter)
        if isinstance(value.data, tuple) or not value.shape:
            raise self.fail(f"{shown(parameter)} is no tensor with dimensions")
        return Dense(value.data, value.element) if isinstance(value.data, np.ndarray) else value.data

    def array(self, parameter: str) -> Array:
        """A tensor, dense."""
        return self._array(self.value(parameter), parameter)

    def optional(self, parameter: str) -> Array | None:
        """A tensor where the parameter is bound."""
        return self.array(parameter) if self.has(parameter) else None

    def arrays(self, parameter: str) -> list[Array]:
        """A tuple of tensors."""
        if not self.has(parameter):
            raise self.fail(f"{shown(parameter)} is bound to nothing")
        return [self._array(value, parameter) for value in self._values[parameter]]

    def elements(self, parameter: str) -> list[Element]:
        """The declared types of a tuple."""
        return [value.element for value in self._values.get(parameter, ())]

    def _array(self, value: Value, parameter: str) -> Array:
        if isinstance(value.data, tuple):
            raise self.fail(f"{shown(parameter)} is a text, expected a tensor")
        if isinstance(value.data, np.ndarray):
            return value.data
        self.reserve(value.shape)
        return dense(value.data)

    def integers(self, parameter: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """A list of integers, or a single one."""
        if default is not None and not self.has(parameter):
            return tuple(default)
        values = self.array(parameter)
        if values.dtype.kind not in "iu" or values.ndim > 1 or values.size > _MAX_LISTED:
            raise self.fail(f"{shown(parameter)} is {values.dtype}{list(values.shape)}, expected a few integers")
        return tuple(int(value) for value in values.reshape(-1))

    def integer(self, parameter: str, default: int | None = None) -> int:
        """One integer."""
        found = self.integers(parameter, None if default is None else (default,))
        if len(found) != 1:
            raise self.fail(f"{shown(parameter)} holds {len(found)} integers, expected one")
        return found[0]

    def booleans(self, parameter: str, count: int) -> tuple[bool, ...]:
        """Booleans; all false where the parameter is not bound."""
        if not self.has(parameter):
            return (False,) * count
        values = self.array(parameter)
        if values.dtype != np.bool_ or values.size != count:
            raise self.fail(f"{shown(parameter)} is {values.dtype}{list(values.shape)}, expected {count} booleans")
        return tuple(bool(value) for value in values.reshape(-1))

    def boolean(self, parameter: str, *, default: bool = False) -> bool:
        """One boolean."""
        return self.booleans(parameter, 1)[0] if self.has(parameter) else default

    def number(self, parameter: str, default: float | None = None) -> float:
        """One number."""
        if default is not None and not self.has(parameter):
            return default
        values = self.array(parameter)
        if values.size != 1:
            raise self.fail(f"{shown(parameter)} holds {values.size} numbers, expected one")
        return float(values.reshape(())[()])

    def text(self, parameter: str, default: str | None = None) -> str:
        """One text."""
        if default is not None and not self.has(parameter):
            return default
        data = self.value(parameter).data
        if not isinstance(data, tuple) or len(data) != 1:
            raise self.fail(f"{shown(parameter)} is not one text")
        return data[0]

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the first."""
        if not -rank <= axis < rank:
            raise self.fail(f"the axis {axis} is not one of {rank}")
        return axis % rank

    def axes(self, axes: Iterable[int], rank: int) -> tuple[int, ...]:
        """Different axes counted from the first, in order."""
        found = sorted(self.axis(axis, rank) for axis in axes)
        if len(set(found)) != len(found):
            raise self.fail(f"the axes {found} name one twice")
        return tuple(found)

    def reserve(self, shape: Sequence[int], copies: int = 1) -> None:
        """Refuse results that do not fit.

        Args:
            shape: of a result, whose elements take four bytes.
            copies: arrays of that shape that are needed at once.
        """
        count = math.prod(int(size) for size in shape) * 4 * copies
        room = self._room
        if not room.has(count):
            raise self.fail(f"{list(shape)!s:.80} takes {count} bytes, {room.used} of {room.limit} are in use")

    def broadcast(self, *arrays: Array) -> tuple[int, ...]:
        """The shape that arrays have together, which fits."""
        try:
            shape = np.broadcast_shapes(*(array.shape for array in arrays))
        except ValueError:
            shapes = " and ".join(str(list(array.shape)) for array in arrays)
            raise self.fail(f"the shapes {shapes} do not go together") from None
        self.reserve(shape)
        return shape

    def inner(self, values: Array, parameter: str, what: str) -> Array:
        """A result within the operation that hardware holds in the type of `parameter`."""
        return self._round_inner(values, self.element(parameter), what)


class Result(enum.Enum):
    """The type of elements that an operation gives."""

    #: that of its first operand
    SAME = "same"
    BOOL = "bool"
    #: as declared: its parameters say which, or any will do
    DECLARED = "declared"


#: What an operation gives: one array or one stored tensor, or several.
Output: TypeAlias = "Array | Stored"
Function: TypeAlias = Callable[[Call], "Output | tuple[Output, ...]"]


@dataclass(frozen=True, slots=True)
class Known:
    """An operation that can be run.

    Attributes:
        run: computes it.
        operands: parameters whose elements must be of one type; those that are bound.
        result: the type of what it gives.
        moves: it gives elements of its operands as they are, so that there is nothing to round.
    """

    run: Function
    operands: tuple[str, ...]
    result: Result
    moves: bool


#: By type.
OPERATIONS: Final[dict[str, Known]] = {}


def operation(
    *names: str, operands: tuple[str, ...] = ("x",), result: Result = Result.SAME, moves: bool = False
) -> Callable[[Function], Function]:
    """Register what computes the operations `names`."""

    def register(run: Function) -> Function:
        for name in names:
            OPERATIONS[name] = Known(run, operands, result, moves)
        return run

    return register


def is_float(array: Array) -> bool:
    """Whether an array holds floats."""
    return array.dtype.kind == "f"


def check_operands(call: Call, known: Known) -> Element | None:
    """The one type of an operation's operands, None where it has none.

    Raises:
        PackageError: they are of different types.
    """
    found: list[tuple[str, Element]] = []
    for parameter in known.operands:
        found += [(parameter, element) for element in call.elements(parameter)]
    for parameter, element in found:
        if element is not found[0][1]:
            raise call.fail(f"{found[0][0]} is {found[0][1]}, {parameter} is {element}: they must be of one type")
    if known.result is Result.SAME and not found:
        raise call.fail(f"{' and '.join(known.operands)} are bound to nothing")
    return found[0][1] if found else None


def check_kind(call: Call, parameter: str, kind: Kind) -> None:
    """Refuse elements of another kind."""
    if call.element(parameter).kind is not kind:
        raise call.fail(f"{parameter} is {call.element(parameter)}, expected {kind}s")
