"""Types of MIL values."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import PackageError

Array = npt.NDArray[Any]

#: Core ML's own limit is 5 for most operations; tables have two dimensions more than their indices.
MAX_RANK: Final = 8
#: Elements of any one value: 2**40 of them would not fit any machine that runs this, and products stay exact.
MAX_ELEMENTS: Final = 1 << 40


class Kind(enum.StrEnum):
    """What operations may be done on elements."""

    FLOAT = "float"
    INTEGER = "integer"
    BOOL = "bool"
    STRING = "string"


class Element(enum.IntEnum):
    """Element types, with the numbers of `MIL.proto`."""

    BOOL = 1
    STRING = 2
    FLOAT16 = 10
    FLOAT32 = 11
    FLOAT64 = 12
    INT8 = 21
    INT16 = 22
    INT32 = 23
    INT64 = 24
    INT4 = 25
    UINT8 = 31
    UINT16 = 32
    UINT32 = 33
    UINT64 = 34
    UINT4 = 35
    UINT2 = 36
    UINT1 = 37
    UINT6 = 38
    UINT3 = 39

    def __str__(self) -> str:
        return self.name.lower()

    @property
    def kind(self) -> Kind:
        """What operations may be done."""
        if self in (Element.FLOAT16, Element.FLOAT32, Element.FLOAT64):
            return Kind.FLOAT
        if self in (Element.BOOL, Element.STRING):
            return Kind(self.name.lower())
        return Kind.INTEGER

    @property
    def bits(self) -> int:
        """Of one stored element; booleans take a byte."""
        digits = "".join(character for character in self.name if character.isdigit())
        return int(digits) if digits else 8

    @property
    def stored(self) -> np.dtype[Any]:
        """The smallest numpy type that holds it."""
        if self is Element.BOOL:
            return np.dtype(np.bool_)
        name = str(self).rstrip("0123456789") + str(max(self.bits, 8))
        return np.dtype(name)

    @property
    def computed(self) -> np.dtype[Any]:
        """What is computed with: single precision for all floats."""
        return np.dtype(np.float32) if self.kind is Kind.FLOAT else self.stored


#: Names of element types as the operation `cast` has them.
CAST_NAMES: Final = {
    **{str(element): element for element in Element},
    "fp16": Element.FLOAT16,
    "fp32": Element.FLOAT32,
    "fp64": Element.FLOAT64,
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor.

    Attributes:
        element: of its elements.
        shape: None for a dimension that is known only when the program runs; None as a whole where not even their
            number is.
    """

    element: Element
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        inner = "..." if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.element}[{inner}]"

    def matches(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of this shape is of this type."""
        return self.shape is None or (
            len(shape) == len(self.shape)
            and all(expected in (None, size) for expected, size in zip(self.shape, shape, strict=True))
        )


@dataclass(frozen=True, slots=True)
class StateType:
    """Memory that stays from one call to the next."""

    tensor: TensorType


@dataclass(frozen=True, slots=True)
class OtherType:
    """A type of values that no operation here gives: `list`, `tuple` or `dictionary`."""

    name: str


ValueType: TypeAlias = TensorType | StateType | OtherType


def read_type(message: Any, where: str) -> ValueType:
    """The type out of its message.

    Raises:
        PackageError: an unknown element type, or impossible dimensions.
    """
    name = message.WhichOneof("type")
    if name == "stateType":
        inner = read_type(message.stateType.wrappedType, where)
        if not isinstance(inner, TensorType) or inner.shape is None or None in inner.shape:
            raise PackageError(f"{where}: a state must be a tensor whose shape is known")
        return StateType(inner)
    if name != "tensorType":
        return OtherType(str(name or "nothing").removesuffix("Type"))
    tensor = message.tensorType
    try:
        element = Element(tensor.dataType)
    except ValueError:
        raise PackageError(f"{where}: the element type {tensor.dataType} is not supported") from None
    if any(size.WhichOneof("dimension") == "unknown" and size.unknown.variadic for size in tensor.dimensions):
        return TensorType(element, None)
    if len(tensor.dimensions) > MAX_RANK:
        raise PackageError(f"{where}: {len(tensor.dimensions)} dimensions, the limit is {MAX_RANK}")
    sizes = tuple(
        int(size.constant.size) if size.WhichOneof("dimension") == "constant" else None for size in tensor.dimensions
    )
    known = [size for size in sizes if size is not None]
    if any(size > MAX_ELEMENTS for size in known) or math.prod(known) > MAX_ELEMENTS:
        raise PackageError(f"{where}: a shape of {sizes!s:.120}, the limit is {MAX_ELEMENTS} elements")
    return TensorType(element, sizes)
