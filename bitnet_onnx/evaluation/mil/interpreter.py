"""Runs a saved program in numpy, operation by operation, and checks everything that it declares.

Two ways: with all floats in single precision, which is what the program means; and with every value that is declared
float16 rounded to it, which is what hardware does at least, where values that no half holds are found.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.errors import PackageError, UnsupportedError
from bitnet_onnx.evaluation.mil._call import Call, Known, Result, Room, Value, check_operands
from bitnet_onnx.evaluation.mil._findings import MAX_FINDINGS, Finding, examine, half
from bitnet_onnx.evaluation.mil._stored import Nonzeros, Rounded, Stored, dense
from bitnet_onnx.evaluation.mil._types import Array, Element, Kind, StateType, TensorType
from bitnet_onnx.evaluation.mil.operations import OPERATIONS
from bitnet_onnx.evaluation.mil.operations.indexing import places
from bitnet_onnx.evaluation.mil.package import Package
from bitnet_onnx.evaluation.mil.program import Binding, Function, Named, Operation
from bitnet_onnx.json_input import shown

#: Bytes of all values of one run, for packages of strangers.
DEFAULT_ROOM: Final = 400 << 20
#: What numpy says of operands that no check has caught.
_IMPOSSIBLE: Final = (MemoryError, ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError)
_STATES: Final = {"read_state", "write_state", "coreml_update_state"}

#: The content of states by name, changed by a run.
State = dict[str, Array]


class Mode(enum.StrEnum):
    """How values are held."""

    #: all floats in single precision
    WIDE = "wide"
    #: what is declared float16 is rounded to it
    FLOAT16 = "float16"


@dataclass(frozen=True, slots=True)
class Run:
    """What a call of a function gave.

    Attributes:
        outputs: by name.
        kept: other values that were asked for, by name.
        findings: overflows in half precision, in order; and values that are not numbers.
    """

    outputs: Mapping[str, Array]
    kept: Mapping[str, Array]
    findings: tuple[Finding, ...]


class Interpreter:
    """Runs the functions of a package.

    Args:
        package: that is open.
        mode: how values are held.
        room: bytes that the values of a run may take.
        cache: bytes of dense weights that are kept from one run to the next.

    Attributes:
        rounds: whether the operation `round` rounds. Without it activations stay floats, and results can be compared
            closely: no unit in the last place becomes one of an integer.
    """

    def __init__(self, package: Package, mode: Mode = Mode.WIDE, *, room: int = DEFAULT_ROOM, cache: int = 0) -> None:
        self.package = package
        self.mode = mode
        self.rounds = True
        self._room = room
        self._cache = Room(cache)
        self._weights: dict[tuple[str, str], Value] = {}

    def unknown(self, function: str) -> Operation | None:
        """The first operation of a function that is not known here."""
        for operation in self._function(function).operations:
            if operation.type not in OPERATIONS and operation.type not in _STATES and operation.type != "const":
                return operation
        return None

    def states(self, function: str) -> State:
        """The states of a function, zeros as when it is loaded.

        Raises:
            PackageError: they do not fit.
        """
        found: State = {}
        room = Room(self._room)
        for given in self._function(function).inputs:
            if isinstance(given.type, StateType):
                shape = tuple(size or 0 for size in given.type.tensor.shape or ())
                count = int(np.prod(shape, dtype=object)) * 4
                if not room.has(count):
                    raise PackageError(f"state {shown(given.name)} takes {count} bytes, the limit is {room.limit}")
                room.used += count
                found[given.name] = np.zeros(shape, given.type.tensor.element.computed)
        return found

    def run(
        self, function: str, inputs: Mapping[str, Array], states: State | None = None, keep: Collection[str] = ()
    ) -> Run:
        """Call a function.

        Args:
            function: its name.
            inputs: a tensor for each input that is no state.
            states: those of earlier calls, changed by this one; None are zeros.
            keep: names of values to give beside the outputs.

        Raises:
            PackageError: what the program does is impossible, or not what it declares.
            UnsupportedError: an operation is not known here.
        """
        called = self._function(function)
        held = self.states(function) if states is None else states
        return _Frame(self, called, held, frozenset(keep), Room(self._room)).run(inputs)

    def _function(self, name: str) -> Function:
        found = self.package.program.functions.get(name)
        if found is None:
            raise PackageError(f"{self.package.program.path}: there is no function {shown(name)}")
        return found

    def weights(self, function: str, output: Named, stored: Stored) -> Value:
        """Weights as a run sees them: rounded, and dense where there is room to keep them so."""
        if isinstance(stored, Nonzeros):
            # What is made of them is rounded and kept.
            return Value(stored, stored.element)
        key = (function, output.name)
        found = self._weights.get(key)
        if found is None:
            element = stored.element
            rounds = self.mode is Mode.FLOAT16 and element is Element.FLOAT16
            seen: Stored = Rounded(stored) if rounds else stored
            count = int(np.prod(seen.shape, dtype=object)) * 4
            data: Array | Stored = seen
            if self._cache.has(count) and element.kind is Kind.FLOAT:
                self._cache.used += count
                data = dense(seen)
                data.flags.writeable = False
            found = self._weights[key] = Value(data, element)
        return found

    def kept_weights(self, function: str, output: Named) -> Value | None:
        """Weights of an earlier run."""
        return self._weights.get((function, output.name))


class _Frame:
    """One call of one function."""

    def __init__(
        self, interpreter: Interpreter, function: Function, states: State, keep: frozenset[str], room: Room
    ) -> None:
        self._interpreter = interpreter
        self._package = interpreter.package
        self._function = function
        self._states = states
        self._keep = keep
        self._room = room
        self._values: dict[str, Value] = {}
        #: Bytes of the values that count.
        self._counted: dict[str, int] = {}
        #: How many operations will still read each value; what is given in the end is never freed.
        self._readers = Counter(name for operation in function.operations for name in set(operation.names()))
        self._last = frozenset(function.outputs) | keep
        self._findings: list[Finding] = []

    def run(self, inputs: Mapping[str, Array]) -> Run:
        for given in self._function.inputs:
            if isinstance(given.type, TensorType):
                self._take(given, inputs)
            elif not isinstance(given.type, StateType) or given.name not in self._states:
                raise PackageError(f"{self._where()}: the input {shown(given.name)} is of no type that can be given")
        operations = self._function.operations
        with np.errstate(all="ignore"):
            for index, operation in enumerate(operations):
                following = operations[index + 1] if index + 1 < len(operations) else None
                try:
                    self._step(operation, following)
                except _IMPOSSIBLE as error:
                    place = f"{operation.type} {shown(operation.name)}"
                    raise PackageError(f"{self._where()}: {place}: {error!s:.200}") from error
        outputs = {name: self._dense(name) for name in self._function.outputs}
        missing = sorted(name for name in self._keep if name not in self._values)
        if missing:
            raise PackageError(f"{self._where()}: there is no value {shown(missing[0])}")
        kept = {name: self._dense(name) for name in self._keep}
        return Run(outputs, kept, tuple(self._findings))

    def _where(self) -> str:
        return f"{self._package.program.path}: function {shown(self._function.name)}"

    def _dense(self, name: str) -> Array:
        data = self._values[name].data
        if isinstance(data, tuple):
            raise PackageError(f"{self._where()}: {shown(name)} is a text")
        return data if isinstance(data, np.ndarray) else dense(data)

    def _take(self, given: Named, inputs: Mapping[str, Array]) -> None:
        kind = given.type
        if given.name not in inputs or not isinstance(kind, TensorType):
            raise PackageError(f"{self._where()}: the input {shown(given.name)} is not given")
        array = np.asarray(inputs[given.name])
        if not kind.matches(array.shape):
            raise PackageError(f"{self._where()}: {shown(given.name)} is {kind}, given are {list(array.shape)}")
        values = array.astype(kind.element.computed)
        if self._rounds(kind.element):
            values = half(values)
        self._set(given.name, Value(values, kind.element))

    def _rounds(self, element: Element) -> bool:
        return self._interpreter.mode is Mode.FLOAT16 and element is Element.FLOAT16

    def _set(self, name: str, value: Value) -> None:
        data = value.data
        if isinstance(data, np.ndarray):
            # A small part of a large array would keep all of it.
            if isinstance(data.base, np.ndarray) and data.base.nbytes > 2 * data.nbytes:
                value = Value(data.copy(), value.element)
            self._counted[name] = data.nbytes
            self._room.used += data.nbytes
        self._values[name] = value

    def _step(self, operation: Operation, following: Operation | None) -> None:
        if operation.blocks:
            raise UnsupportedError(f"{self._where()}: {operation.type} {shown(operation.name)} has blocks of its own")
        if operation.type == "const":
            self._constant(operation)
        elif operation.type in _STATES:
            self._state(operation)
        else:
            self._compute(operation, following)
        for name in set(operation.names()):
            self._readers[name] -= 1
            if not self._readers[name] and name not in self._last:
                self._free(name)
        for output in operation.outputs:
            if not self._readers[output.name] and output.name not in self._last:
                self._free(output.name)

    def _free(self, name: str) -> None:
        self._values.pop(name, None)
        self._room.used -= self._counted.pop(name, 0)

    def _constant(self, operation: Operation) -> None:
        value = operation.attributes.get("val")
        if value is None or len(operation.outputs) != 1:
            raise PackageError(f"{self._where()}: const {shown(operation.name)} has no value")
        output = operation.outputs[0]
        found = self._interpreter.kept_weights(self._function.name, output) or self._package.constant(
            value, output.name
        )
        self._check(operation, output, found)
        if not isinstance(found.data, np.ndarray | tuple):
            found = self._interpreter.weights(self._function.name, output, found.data)
        self._values[output.name] = found

    def _check(self, operation: Operation, output: Named, value: Value) -> None:
        """Whether a value is of the type that is declared."""
        where = f"{self._where()}: {operation.type} {shown(operation.name)}"
        if isinstance(value.data, tuple):
            return
        kind = output.type
        if not isinstance(kind, TensorType):
            raise PackageError(f"{where}: the output {shown(output.name)} is declared {kind!s:.60}")
        if kind.element is not value.element or not kind.matches(value.shape):
            raise PackageError(
                f"{where}: {shown(output.name)} is declared {kind}, computed is {value.element}{list(value.shape)}"
            )

    def _state(self, operation: Operation) -> None:
        parameter = "state" if operation.type == "coreml_update_state" else "input"
        bindings = operation.inputs.get(parameter, ())
        name = bindings[0] if len(bindings) == 1 and isinstance(bindings[0], str) else ""
        where = f"{self._where()}: {operation.type} {shown(operation.name)}"
        declared = {given.name: given.type for given in self._function.inputs}.get(name)
        if not isinstance(declared, StateType):
            raise PackageError(f"{where}: {shown(str(name))} is no state")
        element = declared.tensor.element
        if operation.type != "read_state":
            given = operation.inputs.get("data") or operation.inputs.get("value") or ()
            values = self._bound(operation, "data", given)
            if len(values) != 1 or isinstance(values[0].data, tuple):
                raise PackageError(f"{where}: it is given {len(values)} values, expected a tensor")
            data = values[0].data
            array = data if isinstance(data, np.ndarray) else dense(data)
            if values[0].element is not element or not declared.tensor.matches(array.shape):
                found = f"{values[0].element}{list(array.shape)}"
                raise PackageError(f"{where}: the state is {declared.tensor}, given is {found}")
            self._states[name] = array
        if operation.outputs:
            value = Value(self._states[name], element)
            self._check(operation, operation.outputs[0], value)
            self._set(operation.outputs[0].name, value)

    def _bound(self, operation: Operation, parameter: str, bindings: Sequence[Binding]) -> list[Value]:
        where = f"{operation.name}.{parameter}"
        return [self._value(binding, where) for binding in bindings]

    def _value(self, binding: Binding, where: str) -> Value:
        if not isinstance(binding, str):
            return self._package.constant(binding, where)
        found = self._values.get(binding)
        if found is None:
            raise PackageError(f"{self._where()}: {shown(where)} is bound to {shown(binding)}, which is no tensor")
        return found

    def _compute(self, operation: Operation, following: Operation | None) -> None:
        known = OPERATIONS.get(operation.type)
        if known is None:
            raise UnsupportedError(
                f"{self._where()}: the operation {shown(operation.type)} of {shown(operation.name)} is not known here"
            )
        if operation.type.startswith("constexpr_"):
            kept = [self._interpreter.kept_weights(self._function.name, output) for output in operation.outputs]
            if kept and all(kept):
                self._values |= {o.name: v for o, v in zip(operation.outputs, kept, strict=True) if v is not None}
                return
        values = {name: self._bound(operation, name, given) for name, given in operation.inputs.items()}
        for name, constant in operation.attributes.items():
            if name not in values and name != "name":
                values[name] = [self._package.constant(constant, f"{operation.name}.{name}")]
        call = Call(
            operation,
            values,
            self._function.opset,
            self._room,
            lambda array, element, what: self._rounded(operation, values, array, element, what),
        )
        common = check_operands(call, known)
        updated = self._in_place(operation, values, following)
        if operation.type == "round" and not self._interpreter.rounds:
            updated = call.array("x")
        result = known.run(call) if updated is None else updated
        outputs = result if isinstance(result, tuple) else (result,)
        if len(outputs) != len(operation.outputs):
            raise call.fail(f"{len(operation.outputs)} outputs are declared, it gives {len(outputs)}")
        for output, data in zip(operation.outputs, outputs, strict=True):
            self._give(operation, values, output, data, known, common)

    def _give(
        self,
        operation: Operation,
        values: Mapping[str, Sequence[Value]],
        output: Named,
        data: Array | Stored,
        known: Known,
        common: Element | None,
    ) -> None:
        declared = output.type.element if isinstance(output.type, TensorType) else Element.STRING
        if not isinstance(data, np.ndarray):
            self._check(operation, output, Value(data, data.element))
            self._values[output.name] = self._interpreter.weights(self._function.name, output, data)
            return
        if known.result is not Result.SAME or common is None:
            # Of the declared kind; which of its types an operation gives is said by the declaration.
            kinds = {declared.computed.kind, data.dtype.kind}
            if len(kinds) > 1 and kinds != {"i", "u"}:
                raise PackageError(
                    f"{self._where()}: {operation.type} {shown(operation.name)}: {shown(output.name)} is declared "
                    f"{output.type}, computed is {data.dtype}"
                )
            common = declared
        self._check(operation, output, Value(data, common))
        array = data.astype(common.computed, copy=False)
        if not known.moves:
            array = self._rounded(operation, values, array, common, "")
        self._set(output.name, Value(array, common))

    def _in_place(
        self, operation: Operation, values: Mapping[str, Sequence[Value]], following: Operation | None
    ) -> Array | None:
        """`slice_update` of a state that nobody reads before it is written: without a copy of the whole cache."""
        source = operation.inputs.get("x", ())
        if operation.type != "slice_update" or following is None or following.type != "write_state":
            return None
        name, (target,) = source[0], following.inputs.get("input", ("",))
        given = following.inputs.get("data", ())
        array, update = values["x"][0].data, values["update"][0].data
        if not (isinstance(array, np.ndarray) and isinstance(update, np.ndarray) and isinstance(target, str)):
            return None
        dies = isinstance(name, str) and self._readers[name] == 1 and name not in self._last
        if not dies or given != (operation.outputs[0].name,) or self._states.get(target) is not array:
            return None
        others = [other for held, other in self._values.items() if held != name]
        others += [Value(state, Element.FLOAT16) for held, state in self._states.items() if held != target]
        if any(isinstance(other.data, np.ndarray) and np.may_share_memory(other.data, array) for other in others):
            return None
        call = Call(operation, values, self._function.opset, self._room, lambda array, _, __: array)
        where = places(call, array.shape)
        if not array.flags.writeable or array[where].shape != update.shape:
            return None
        array[where] = update
        return array

    def _rounded(
        self, operation: Operation, values: Mapping[str, Sequence[Value]], array: Array, element: Element, within: str
    ) -> Array:
        """A value as it is held, and what is wrong with it."""
        if array.dtype.kind != "f":
            return array
        rounded = half(array) if self._rounds(element) else array
        # One sum instead of a test of each element: it is finite where all are, and mostly they are.
        if not np.isfinite(np.sum(rounded, dtype=np.float64)):
            room = MAX_FINDINGS - len(self._findings)
            self._findings += examine(operation, values, array, rounded, within)[:room]
        return rounded
