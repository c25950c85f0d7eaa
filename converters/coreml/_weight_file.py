"""The weight file: written matrix by matrix, while the program holds stand-ins that take no memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.coreml._tools import Tools
from bitnet_onnx.errors import PackageError

#: Smaller constants stand in the program itself, as coremltools has it.
_FEWEST: Final = 10
#: Methods of the writer, with the type in which each takes its values.
_WRITERS: Final[Mapping[str, tuple[str, type[np.generic]]]] = {
    "uint1": ("write_uint1_data", np.uint8),
    "uint2": ("write_uint2_data", np.uint8),
    "uint6": ("write_uint6_data", np.uint8),
    "int4": ("write_int4_data", np.int8),
    "int8": ("write_int8_data", np.int8),
    "int32": ("write_int32_data", np.int32),
    "fp16": ("write_fp16_data", np.float16),
    "fp32": ("write_float_data", np.float32),
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A constant of the package.

    Attributes:
        kind: element type by its MIL name.
        shape: of the array.
        offset: in the weight file; None where the program holds the values.
        values: where the program holds them.
        ones: how many elements are not zero, of a mask.
    """

    kind: str
    shape: tuple[int, ...]
    offset: int | None
    values: npt.NDArray[np.generic] | None
    ones: int


class WeightFile:
    """Writes constants by name, each once.

    Args:
        tools: coremltools.
        path: the file to create.
    """

    def __init__(self, tools: Tools, path: Path) -> None:
        self._tools = tools
        self.path = path
        self._stored: dict[str, Stored] = {}
        #: coremltools' own writer, which appends what the program's exporter finds besides.
        self.writer: Any = _new_writer(tools, path)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __getitem__(self, name: str) -> Stored:
        return self._stored[name]

    def get(self, name: str) -> Stored | None:
        """The constant of that name, if there is one."""
        return self._stored.get(name)

    def put(self, name: str, array: npt.NDArray[np.generic], kind: str) -> int:
        """Write an array.

        Args:
            name: of the constant.
            array: of values that the kind can hold.
            kind: `uint1`, `uint2`, `uint6`, `int4`, `int8`, `int32`, `fp16` or `fp32`.

        Returns:
            The bits that it takes.

        Raises:
            PackageError: the disk is full, or whatever else the system says.
        """
        method, dtype = _WRITERS[kind]
        data = np.asarray(array, dtype, order="C")
        ones = int(np.count_nonzero(data)) if kind == "uint1" else 0
        bits = data.size * int(self._type(kind).get_bitwidth())
        if data.size < _FEWEST:
            self._stored[name] = Stored(kind, data.shape, None, data.astype(self.numpy_type(kind)), ones)
            return bits
        flat = data.reshape(-1)
        try:
            offset = getattr(self.writer, method)(flat.view(np.uint16) if kind == "fp16" else flat)
        except RuntimeError as error:
            raise PackageError(f"{self.path.name}: cannot be written: {error}; free some space") from error
        self._stored[name] = Stored(kind, data.shape, int(offset), None, ones)
        return bits

    def close(self) -> None:
        """Finish the file."""
        self.writer = None

    def numpy_type(self, kind: str) -> npt.DTypeLike:
        """What coremltools takes for elements of a kind; those below a byte are told by metadata."""
        found: npt.DTypeLike = self._tools.types.nptype_from_builtin(self._type(kind))
        return found

    def _type(self, kind: str) -> Any:
        return getattr(self._tools.types, kind)


def _new_writer(tools: Tools, path: Path) -> Any:
    return tools.blob_writer(str(path))


class StandIn(np.ndarray[Any, Any]):
    """An array of any shape that takes one element; of a mask it knows how many elements are not zero.

    coremltools counts them when an operation takes a mask.
    """

    ones: int

    @classmethod
    def of(cls, stored: Stored, dtype: npt.DTypeLike) -> StandIn:
        """In the place of a constant that has been written."""
        made = np.broadcast_to(np.zeros((), dtype), stored.shape).view(cls)
        made.ones = stored.ones
        return made

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """As of any array, but for that count."""
        if func is np.count_nonzero:
            return self.ones
        return super().__array_function__(func, types, args, kwargs)
