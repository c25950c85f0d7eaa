"""A Core ML program as it was saved: read once, checked, and never changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np

from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation.mil._blob import unpack
from bitnet_onnx.evaluation.mil._bundle import Bundle
from bitnet_onnx.evaluation.mil._protobuf import parse
from bitnet_onnx.evaluation.mil._types import Array, Element, Kind, TensorType, ValueType, read_type
from bitnet_onnx.json_input import shown

#: By the names of sets of operations: the release whose rules they have.
OPSETS: Final = {"CoreML5": 15, "CoreML6": 16, "CoreML7": 17, "CoreML8": 18, "CoreML9": 26}
_MAX_NAME: Final = 1000
_TEXTS: Final = "strings"
#: In which field values of a type lie; those of all other integers are bytes.
_FIELDS: Final = {
    Element.BOOL: "bools",
    Element.STRING: _TEXTS,
    Element.FLOAT32: "floats",
    Element.FLOAT64: "doubles",
    Element.INT16: "ints",
    Element.UINT16: "ints",
    Element.INT32: "ints",
    Element.INT64: "longInts",
    Element.UINT64: "longInts",
}


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that the program itself holds.

    Attributes:
        type: of the value.
        value: an array in the type that is computed with, or the texts of a string or a list of strings.
    """

    type: ValueType
    value: Array | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileValue:
    """A value in a file of weights.

    Attributes:
        type: of the value.
        file: its name as the program has it.
        offset: of its record.
    """

    type: TensorType
    file: str
    offset: int


Constant: TypeAlias = Literal | FileValue
#: What an input is bound to: the name of a value, or a constant.
Binding: TypeAlias = str | Constant


@dataclass(frozen=True, slots=True)
class Named:
    """A name and its type."""

    name: str
    type: ValueType


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        type: such as `linear`.
        name: its own, or that of its first output.
        inputs: bindings by parameter; several where a parameter takes a tuple.
        outputs: what it gives.
        attributes: constants by name.
        blocks: how many blocks it has.
    """

    type: str
    name: str
    inputs: Mapping[str, tuple[Binding, ...]]
    outputs: tuple[Named, ...]
    attributes: Mapping[str, Constant]
    blocks: int

    def names(self) -> Iterator[str]:
        """The names of all values that it reads."""
        for bindings in self.inputs.values():
            for binding in bindings:
                if isinstance(binding, str):
                    yield binding


@dataclass(frozen=True, slots=True)
class Function:
    """A function of a program.

    Attributes:
        name: as the model has it.
        inputs: tensors and states.
        outputs: names of values.
        opset: whose rules the operations have: 15 for iOS 15, and so on.
        operations: each before those that read it.
    """

    name: str
    inputs: tuple[Named, ...]
    outputs: tuple[str, ...]
    opset: int
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes that a dimension of an input may have, from `least` to `most`; None is no bound."""

    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Interface:
    """What a function is called with, as the model describes it.

    Attributes:
        default: the shape of each input where nothing else is said.
        sizes: allowed sizes of the dimensions of inputs of flexible shape.
        outputs: names.
        states: names.
    """

    default: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, tuple[Size, ...]]
    outputs: tuple[str, ...]
    states: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A saved program.

    Attributes:
        path: of the file.
        specification: version of the format.
        functions: by name.
        interfaces: by name of a function.
        main: name of the function that is called where none is named.
        metadata: user-defined, by key.
    """

    path: Path
    specification: int
    functions: Mapping[str, Function]
    interfaces: Mapping[str, Interface]
    main: str
    metadata: Mapping[str, str]


def read_program(bundle: Bundle) -> Program:
    """Read and check the program of a package.

    Raises:
        PackageError: it is broken, contradicts itself, or is not an ML program.
    """
    path = bundle.model
    model = parse(bundle.read_model(), str(path))
    if model.WhichOneof("Type") != "mlProgram":
        raise PackageError(f"{path}: a model of the type {model.WhichOneof('Type')}: expected an ML program")
    functions = {name: _function(name, part, str(path)) for name, part in model.mlProgram.functions.items()}
    if not functions:
        raise PackageError(f"{path}: a program without functions")
    description = model.description
    interfaces = {part.name: _interface(part) for part in description.functions}
    main = description.defaultFunctionName or "main"
    if not interfaces:
        interfaces = {main: _interface(description)}
    for name in (main, *interfaces):
        if name not in functions:
            raise PackageError(f"{path}: the description names the function {shown(name)}, which the program lacks")
    return Program(
        path=path,
        specification=model.specificationVersion,
        functions=MappingProxyType(functions),
        interfaces=MappingProxyType(interfaces),
        main=main,
        metadata=MappingProxyType(dict(description.metadata.userDefined)),
    )


def _interface(description: Any) -> Interface:
    default: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, tuple[Size, ...]] = {}
    for feature in description.input:
        array = feature.type.multiArrayType
        default[feature.name] = tuple(int(size) for size in array.shape)
        if array.WhichOneof("ShapeFlexibility") == "shapeRange":
            sizes[feature.name] = tuple(
                Size(int(size.lowerBound), int(size.upperBound) if size.upperBound >= 0 else None)
                for size in array.shapeRange.sizeRanges
            )
    outputs = tuple(feature.name for feature in description.output)
    return Interface(default, sizes, outputs, tuple(feature.name for feature in description.state))


def _function(name: str, message: Any, path: str) -> Function:
    where = f"{path}: function {shown(name)}"
    opset = OPSETS.get(message.opset)
    if opset is None or message.opset not in message.block_specializations:
        known = ", ".join(OPSETS)
        raise PackageError(f"{where}: no block for the operations of {shown(message.opset)} (known: {known})")
    block = message.block_specializations[message.opset]
    inputs = tuple(_named(part, where) for part in message.inputs)
    seen = {part.name for part in inputs}
    if len(seen) != len(inputs):
        raise PackageError(f"{where}: two inputs have one name")
    operations = []
    for part in block.operations:
        operation = _operation(part, where)
        for used in operation.names():
            if used not in seen:
                raise PackageError(f"{where}: {operation.type} {shown(operation.name)} reads {shown(used)} too early")
        for made in operation.outputs:
            if made.name in seen:
                raise PackageError(f"{where}: two values have the name {shown(made.name)}")
            seen.add(made.name)
        operations.append(operation)
    outputs = tuple(str(output) for output in block.outputs)
    for output in outputs:
        if output not in seen:
            raise PackageError(f"{where}: the output {shown(output)} is never computed")
    return Function(name, inputs, outputs, opset, tuple(operations))


def _named(message: Any, where: str) -> Named:
    if not message.name or len(message.name) > _MAX_NAME:
        raise PackageError(f"{where}: a value has the name {shown(message.name)}")
    return Named(message.name, read_type(message.type, f"{where}: {shown(message.name)}"))


def _operation(message: Any, where: str) -> Operation:
    outputs = tuple(_named(output, where) for output in message.outputs)
    place = f"{where}: {shown(message.type)} {shown(outputs[0].name if outputs else '')}"
    attributes = {name: _constant(value, f"{place}.{name:.60}") for name, value in message.attributes.items()}
    given = attributes.get("name")
    label = given.value if isinstance(given, Literal) else ()
    name = label[0] if isinstance(label, tuple) and label else outputs[0].name if outputs else message.type
    inputs = {
        parameter: tuple(_binding(binding, f"{place}.{parameter:.60}") for binding in argument.arguments)
        for parameter, argument in message.inputs.items()
    }
    return Operation(message.type, name, inputs, outputs, attributes, len(message.blocks))


def _binding(message: Any, where: str) -> Binding:
    match message.WhichOneof("binding"):
        case "name":
            return str(message.name)
        case "value":
            return _constant(message.value, where)
        case _:
            raise PackageError(f"{where}: bound to nothing")


def _constant(message: Any, where: str) -> Constant:
    kind = read_type(message.type, where)
    if message.WhichOneof("value") == "blobFileValue":
        if not isinstance(kind, TensorType):
            raise PackageError(f"{where}: a value in a file must be a tensor")
        return FileValue(kind, message.blobFileValue.fileName, message.blobFileValue.offset)
    immediate = message.immediateValue
    match immediate.WhichOneof("value"):
        case "tensor" if isinstance(kind, TensorType):
            return Literal(kind, _tensor(immediate.tensor, kind, where))
        case "list":
            texts = tuple(text for part in immediate.list.values for text in part.immediateValue.tensor.strings.values)
            return Literal(kind, texts)
        case other:
            raise PackageError(f"{where}: a constant of the type {other} for {kind!s:.60}")


def _tensor(message: Any, kind: TensorType, where: str) -> Array | tuple[str, ...]:
    if kind.shape is None or None in kind.shape:
        raise PackageError(f"{where}: a constant of the type {kind}")
    shape = tuple(size for size in kind.shape if size is not None)
    size, field = math.prod(shape), _FIELDS.get(kind.element, "bytes")
    found = message.WhichOneof("value")
    if found != field and not (found is None and size == 0):
        raise PackageError(f"{where}: a constant of the type {kind} in the field {found}, expected {field}")
    values = getattr(message, field).values
    bits = kind.element.bits
    count, expected = (len(values), size) if field != "bytes" else (len(values), -(-size * bits // 8))
    if count != expected:
        unit = "values" if field != "bytes" else "bytes"
        raise PackageError(f"{where}: a constant of the type {kind} has {count} {unit}, expected {expected}")
    if kind.element.kind is Kind.STRING:
        return tuple(str(value) for value in values)
    if field == "bytes" and bits < 8:
        raw = unpack(np.frombuffer(values, np.uint8), kind.element, size)
    elif field == "bytes":
        raw = np.frombuffer(values, kind.element.stored.newbyteorder("<"))
    else:
        raw = np.array(values, np.float64 if kind.element.kind is Kind.FLOAT else None)
        if kind.element.kind is Kind.INTEGER and size:
            limits = np.iinfo(kind.element.stored)
            if raw.min() < limits.min or raw.max() > limits.max:
                raise PackageError(f"{where}: a constant of the type {kind} holds {raw.min()} to {raw.max()}")
    with np.errstate(over="ignore"):
        return raw.astype(kind.element.computed).reshape(shape)
