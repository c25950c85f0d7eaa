"""Files of weights: records of 64 bytes that say where the data of one tensor lies, and of which type it is."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation.mil._types import Array, Element, Kind, TensorType

_ALIGNMENT: Final = 64
_VERSION: Final = 2
_SENTINEL: Final = 0xDEADBEEF
_HEADER: Final = np.dtype([("count", "<u4"), ("version", "<u4"), ("rest", "V56")])
_RECORD: Final = np.dtype(
    [("sentinel", "<u4"), ("type", "<u4"), ("size", "<u8"), ("offset", "<u8"), ("padding", "<u8"), ("rest", "V32")]
)
#: The numbers that files of weights have for types are not those of programs.
_TYPES: Final = {
    1: Element.FLOAT16,
    2: Element.FLOAT32,
    3: Element.UINT8,
    4: Element.INT8,
    6: Element.INT16,
    7: Element.UINT16,
    8: Element.INT4,
    9: Element.UINT1,
    10: Element.UINT2,
    11: Element.UINT4,
    12: Element.UINT3,
    13: Element.UINT6,
    14: Element.INT32,
    15: Element.UINT32,
}


@dataclass(frozen=True, slots=True)
class BlobTensor:
    """A tensor in a file of weights, read when it is needed.

    Attributes:
        file: that holds it.
        offset: of its data, bytes.
        element: of its elements.
        shape: at least one dimension.
    """

    file: BinaryFile
    offset: int
    element: Element
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> Array:
        """Some of the rows, in the type that is computed with; sub-byte integers as int8 or uint8."""
        width = math.prod(self.shape[1:])
        return self.flat(start * width, (stop - start) * width).reshape(stop - start, *self.shape[1:])

    @property
    def rows_are_bytes(self) -> bool:
        """Whether rows are of whole bytes, each of which holds whole elements of less than a byte."""
        bits = self.element.bits
        return bits < 8 and 8 % bits == 0 and math.prod(self.shape[1:]) * bits % 8 == 0

    def packed(self, start: int, stop: int) -> Array:
        """The bytes of rows of whole bytes."""
        width = math.prod(self.shape[1:]) * self.element.bits // 8
        data = np.empty((stop - start) * width, np.uint8)
        self.file.read_into(self.offset + start * width, data)
        return data

    def flat(self, start: int, count: int) -> Array:
        """`count` elements from `start` on, in the order in which they lie."""
        bits = self.element.bits
        # Whole groups of bytes: three of them hold whole elements of 3 and 6 bits.
        unit = 8 if bits < 8 else 1
        first = start // unit * unit
        last = min(-(-(start + count) // unit) * unit, math.prod(self.shape))
        data = np.empty(-(-last * bits // 8) - first * bits // 8, np.uint8)
        self.file.read_into(self.offset + first * bits // 8, data)
        if bits < 8:
            return unpack(data, self.element, last - first)[start - first : start - first + count]
        values = data.view(self.element.stored.newbyteorder("<"))
        return values.astype(self.element.computed, copy=False)


class BlobFile:
    """One file of weights.

    Args:
        path: of the file.

    Raises:
        PackageError: it does not begin as such a file does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = BinaryFile(path)
        #: What the records that were asked for take up: begins, ends, and whose each is.
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._records: dict[int, TensorType] = {}
        try:
            header = self._structure(_HEADER, 0)
            if header["version"] != _VERSION:
                raise PackageError(f"{path}: version {header['version']} of the format, expected {_VERSION}")
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    def tensor(self, offset: int, kind: TensorType, name: str) -> BlobTensor:
        """The tensor whose record lies at `offset`.

        Args:
            offset: bytes from the beginning of the file.
            kind: its type as the program has it.
            name: of the value, for errors.

        Raises:
            PackageError: there is no such record, it contradicts the program, its data leave the file or overlap what
                another record has.
        """
        where = f"{self._path}: the record at byte {offset}, of {name}"
        if offset % _ALIGNMENT or not 0 < offset <= self.size - _RECORD.itemsize:
            raise PackageError(f"{where}: expected a multiple of {_ALIGNMENT} within the {self.size} bytes of the file")
        record = self._structure(_RECORD, offset)
        size, begin, padding = int(record["size"]), int(record["offset"]), int(record["padding"])
        if record["sentinel"] != _SENTINEL:
            raise PackageError(f"{where}: it begins with {int(record['sentinel']):#x}, expected {_SENTINEL:#x}")
        if kind.shape is None or None in kind.shape or not kind.shape:
            raise PackageError(f"{where}: the program gives it the shape {kind}")
        shape = tuple(size for size in kind.shape if size is not None)
        element = _TYPES.get(int(record["type"]))
        if element is not kind.element:
            raise PackageError(f"{where}: it has the type {element or int(record['type'])}, the program says {kind}")
        bits = math.prod(shape) * element.bits
        if size != -(-bits // 8) or padding != size * 8 - bits:
            raise PackageError(f"{where}: it has {size} bytes with {padding} bits unused, {kind} takes {-(-bits // 8)}")
        if begin % _ALIGNMENT or begin > self.size - size:
            raise PackageError(f"{where}: {size} bytes at byte {begin}, the file has {self.size}")
        known = self._records.get(offset)
        if known is None:
            self._occupy(offset, offset + _RECORD.itemsize, where)
            self._occupy(begin, begin + size, where)
            self._records[offset] = kind
        elif known != kind:
            raise PackageError(f"{where}: the program has it as {known} and as {kind}")
        return BlobTensor(self._file, begin, element, shape)

    def _occupy(self, begin: int, end: int, where: str) -> None:
        place = bisect.bisect_right(self._begins, begin)
        before = self._ends[place - 1] if place else _HEADER.itemsize
        after = self._begins[place] if place < len(self._begins) else self.size
        if begin < before or end > after:
            raise PackageError(f"{where}: bytes {begin} to {end} overlap those of another tensor")
        if begin < end:
            self._begins.insert(place, begin)
            self._ends.insert(place, end)

    def _structure(self, kind: np.dtype[Any], offset: int) -> Any:
        if self.size < offset + kind.itemsize:
            raise PackageError(f"{self._path}: {self.size} bytes, the record at byte {offset} ends behind them")
        data = np.empty(kind.itemsize, np.uint8)
        self._file.read_into(offset, data)
        return data.view(kind)[0]


def unpack(data: Array, element: Element, count: int) -> Array:
    """The first `count` integers of less than a byte, that lie one behind the other from the lowest bit on.

    Args:
        data: uint8 `[B]`.
        element: of 1, 2, 3, 4 or 6 bits.
        count: how many.

    Returns:
        uint8, or int8 for signed ones; `[count]`.
    """
    bits = element.bits
    width = 1 if 8 % bits == 0 else 3
    shifts = np.arange(width * 8 // bits) * bits
    if width == 1:
        table = (np.arange(256)[:, None] >> shifts) & ((1 << bits) - 1)
        values: Array = np.take(table.astype(np.uint8), data, axis=0).reshape(-1)
    else:
        padded = np.zeros(-(-len(data) // width) * width, np.uint32)
        padded[: len(data)] = data
        words = padded[0::3] | padded[1::3] << 8 | padded[2::3] << 16
        values = ((words[:, None] >> shifts.astype(np.uint32)) & ((1 << bits) - 1)).astype(np.uint8).reshape(-1)
    values = values[:count]
    if element is Element.INT4:
        return ((values ^ 8).astype(np.int8) - np.int8(8)).astype(np.int8)
    if element.kind is not Kind.INTEGER or element.bits >= 8:
        raise ValueError(element)
    return values
