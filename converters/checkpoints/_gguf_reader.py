"""GGUF files: metadata and tensor places, with every count and length checked before it is believed.

Layout, version 2 and 3, little endian: magic, version, tensor count (u64), key count (u64), the key-value pairs,
the tensor descriptions, padding to the alignment, the data. Strings are a u64 length and UTF-8 bytes; arrays are an
element type, a u64 count and the elements. Source: the GGUF specification in the ggml repository.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from bitnet_onnx.converters.checkpoints._base import TensorInfo
from bitnet_onnx.converters.checkpoints._decode import StoredTensor
from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.converters.checkpoints._gguf_layouts import Description, storage_types
from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata, Value
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import shown

#: Everything before the data. The largest vocabularies of today take some 20 MB.
MAX_HEADER = 64_000_000
#: Elements of all metadata arrays together; the largest vocabularies of today take 1.3 million.
MAX_ELEMENTS = 1_500_000
MAX_KEYS = 10_000
MAX_TENSORS = 100_000
MAX_KEY_LENGTH = 65_535
MAX_NAME_LENGTH = 127
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 65_536

_WINDOW = 1 << 20

_STRING = 8
_ARRAY = 9
_BOOL = 7
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_UINT32 = 4


@dataclass(slots=True)
class Budget:
    """What the headers of one file, or of several together, may still take."""

    header: int = MAX_HEADER
    keys: int = MAX_KEYS
    elements: int = MAX_ELEMENTS
    tensors: int = MAX_TENSORS


@dataclass(frozen=True, slots=True)
class GgufContent:
    """What stands before the data of a GGUF file; tensors have their GGUF names."""

    metadata: Metadata
    tensors: Mapping[str, StoredTensor]


def read_gguf(file: BinaryFile, i2s_layout: str | None = None, budget: Budget | None = None) -> GgufContent:
    """Read metadata and tensor descriptions of a GGUF file.

    Shapes are turned round: GGUF counts the fastest dimension first, `TensorInfo` last.

    Args:
        file: the open file.
        i2s_layout: how I2_S tensors are laid out, a key of `I2_S_LAYOUTS`; they are refused without it.
        budget: what the header may take, less afterwards by what it took; by default that of a single file.

    Raises:
        CheckpointError: the file contradicts itself, or a count exceeds its limit.
        UnsupportedError: version, byte order, nested array or tensor type that is not read.
    """
    return _Parser(file, i2s_layout, budget or Budget()).parse()


class _Parser:
    """A cursor over the header; every read is checked against the end of the file and the budget."""

    def __init__(self, file: BinaryFile, i2s_layout: str | None, budget: Budget) -> None:
        self._file = file
        self._i2s_layout = i2s_layout
        self._budget = budget
        self._end = min(file.size, budget.header)
        self._window = b""
        self._window_start = 0
        self._position = 0

    def parse(self) -> GgufContent:
        if self._take(4, "magic") != b"GGUF":
            raise CheckpointError(f"{self._file.path}: not a GGUF file: it does not start with GGUF")
        version = self._unsigned(4, "version")
        if version & 0xFFFF == 0 and version:
            raise UnsupportedError(f"{self._file.path}: big-endian GGUF files are not read")
        if version not in {2, 3}:
            raise UnsupportedError(f"{self._file.path}: GGUF version {version} is not read, only 2 and 3")
        tensor_count = self._count("tensor count", self._budget.tensors, least=24)
        self._budget.tensors -= tensor_count
        key_count = self._count("key count", self._budget.keys, least=13)
        self._budget.keys -= key_count
        values = dict[str, Value]()
        for _ in range(key_count):
            key = self._text("key", MAX_KEY_LENGTH)
            if key in values:
                raise CheckpointError(f"{self._file.path}: key {shown(key)} appears twice")
            kind = self._unsigned(4, f"type of {shown(key)}")
            if key == "general.alignment" and kind != _UINT32:
                raise CheckpointError(f"{self._file.path}: general.alignment has type {kind}, not uint32")
            values[key] = self._array(key) if kind == _ARRAY else self._scalar(kind, key)
        metadata = Metadata(values, str(self._file.path))
        alignment = metadata.integer("general.alignment", 32)
        if alignment < 8 or alignment > MAX_ALIGNMENT or alignment & (alignment - 1):
            raise CheckpointError(
                f"{self._file.path}: general.alignment is {alignment}, not a power of two from 8 to {MAX_ALIGNMENT}"
            )
        descriptions = [self._description() for _ in range(tensor_count)]
        self._budget.header -= self._position
        data_start = -(-self._position // alignment) * alignment
        return GgufContent(metadata, self._place(descriptions, data_start, alignment))

    def _place(self, descriptions: list[Description], data_start: int, alignment: int) -> dict[str, StoredTensor]:
        """Turn offsets within the data into offsets within the file, and check that they follow each other."""
        placed: dict[str, StoredTensor] = {}
        end = data_start
        descriptions.sort(key=lambda item: item.offset)
        kinds = storage_types(
            descriptions,
            data_size=self._file.size - data_start,
            alignment=alignment,
            i2s_layout=self._i2s_layout,
            source=str(self._file.path),
        )
        for item, kind in zip(descriptions, kinds, strict=True):
            where = f"{self._file.path}: tensor {shown(item.name)}"
            start = data_start + item.offset
            nbytes = kind.size(item.elements)
            if nbytes > self._file.size:
                raise CheckpointError(
                    f"{where}: {kind.name} {list(item.shape)} takes {nbytes} bytes, more than the file has"
                )
            if item.offset % alignment:
                raise CheckpointError(f"{where}: offset {item.offset} is not a multiple of {alignment}")
            if start < end:
                raise CheckpointError(f"{where}: starts at byte {start}, inside the one before, which ends at {end}")
            if start + nbytes > self._file.size:
                raise CheckpointError(f"{where}: ends at byte {start + nbytes}, the file at {self._file.size}")
            # Writers leave no holes. Without this check a wrong type or count would shift the data of what follows it.
            if start - end >= alignment:
                raise CheckpointError(f"{where}: starts at byte {start}, the one before ends at {end}")
            end = start + nbytes
            if item.name in placed:
                raise CheckpointError(f"{where}: appears twice")
            info = TensorInfo(item.name, item.shape, kind.name, nbytes, self._file.name)
            placed[item.name] = StoredTensor(info=info, file=self._file, offset=start, type=kind)
        if self._file.size - end >= alignment and placed:
            raise CheckpointError(f"{self._file.path}: tensors end at byte {end}, the file at {self._file.size}")
        return placed

    def _description(self) -> Description:
        name = self._text("tensor name", MAX_NAME_LENGTH)
        where = f"{self._file.path}: tensor {shown(name)}"
        dimensions = self._unsigned(4, "dimension count")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise CheckpointError(f"{where}: {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
        shape = tuple(self._unsigned(8, "dimension") for _ in range(dimensions))[::-1]
        type_id = self._unsigned(4, "tensor type")
        offset = self._unsigned(8, "tensor offset")
        if min(shape) < 1:
            raise CheckpointError(f"{where}: shape {list(shape)} has an empty dimension")
        return Description(name, shape, type_id, offset)

    def _scalar(self, kind: int, key: str) -> str | int | float | bool:
        if kind == _STRING:
            return self._text(f"value of {shown(key)}", MAX_HEADER)
        layout = _SCALARS.get(kind)
        if layout is None:
            raise CheckpointError(f"{self._file.path}: key {shown(key)} has unknown value type {kind}")
        value: int | float = layout.unpack(self._take(layout.size, f"value of {shown(key)}"))[0]
        return self._flag(value, key) if kind == _BOOL else value

    def _array(self, key: str) -> list[str] | list[int] | list[float] | list[bool]:
        kind = self._unsigned(4, f"element type of {shown(key)}")
        if kind == _ARRAY:
            raise UnsupportedError(f"{self._file.path}: key {shown(key)} is an array of arrays, which is not read")
        layout = _SCALARS.get(kind)
        if layout is None and kind != _STRING:
            raise CheckpointError(f"{self._file.path}: key {shown(key)} has unknown element type {kind}")
        what = f"length of {shown(key)}"
        count = self._count(what, self._budget.elements, least=layout.size if layout else 8)
        self._budget.elements -= count
        if layout is None:
            what = f"element of {shown(key)}"
            return [self._text(what, MAX_HEADER) for _ in range(count)]
        data = self._take(count * layout.size, f"elements of {shown(key)}")
        values: list[int] | list[float] = [value for (value,) in layout.iter_unpack(data)]
        return [self._flag(value, key) for value in values] if kind == _BOOL else values

    def _flag(self, value: float, key: str) -> bool:
        if value not in {0, 1}:
            raise CheckpointError(f"{self._file.path}: key {shown(key)} holds {value} as a boolean")
        return bool(value)

    def _text(self, what: str, limit: int) -> str:
        length = self._unsigned(8, what)
        if length > limit:
            raise CheckpointError(f"{self._file.path}: {what} of {length} bytes exceeds the limit of {limit}")
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._file.path}: {what} is not UTF-8") from error

    def _count(self, what: str, limit: int, *, least: int) -> int:
        """A number of items that take `least` bytes each, or more."""
        count = self._unsigned(8, what)
        if count > limit:
            raise CheckpointError(f"{self._file.path}: {what} is {count}, the limit {limit}")
        if count * least > self._end - self._position:
            raise CheckpointError(
                f"{self._file.path}: {what} is {count}, too many for the {self._end - self._position} bytes left"
            )
        return count

    def _unsigned(self, size: int, what: str) -> int:
        return int.from_bytes(self._take(size, what), "little")

    def _take(self, count: int, what: str) -> bytes:
        start = self._position
        stop = start + count
        if stop > self._end:
            raise CheckpointError(
                f"{self._file.path}: {what} takes {count} bytes at byte {start}, the header ends at {self._end}"
            )
        if stop > self._window_start + len(self._window):
            size = min(max(count, _WINDOW), self._end - start)
            self._window = self._file.read(start, size)
            self._window_start = start
        self._position = stop
        return self._window[start - self._window_start : stop - self._window_start]
