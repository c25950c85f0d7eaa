"""How many messages a protobuf file makes and how deep they lie, before a parser allocates them.

A message of two bytes becomes a hundred in memory, and a parser has no limit for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from bitnet_onnx.errors import PackageError

#: A model of 2 billion weights has some 200 thousand fields, both functions taken together.
MAX_FIELDS: Final = 3_000_000
#: A program of flat blocks is 17 deep.
MAX_DEPTH: Final = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT: Final = 10

#: The fields of a message that hold messages, by number.
Schema: TypeAlias = "Mapping[int, Any]"


def check_size(data: bytes, message: Any, path: str) -> None:
    """Walk through serialized messages.

    Args:
        data: of one message.
        message: its class.
        path: what errors call the file.

    Raises:
        PackageError: it ends within a field, or has more than `MAX_FIELDS` fields or `MAX_DEPTH` levels.
    """
    schemas: dict[str, Schema] = {}
    stack: list[tuple[int, Schema]] = [(len(data), _schema(message.DESCRIPTOR, schemas))]
    position = fields = 0
    while stack:
        end, schema = stack[-1]
        if position == end:
            stack.pop()
            continue
        fields += 1
        if fields > MAX_FIELDS:
            raise PackageError(f"{path}: more than {MAX_FIELDS} fields, the limit")
        tag, position = _varint(data, position, end, path)
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(data, position, end, path)
        elif kind == _BYTES:
            length, position = _varint(data, position, end, path)
            if length > end - position:
                raise PackageError(f"{path}: a field of {length} bytes at byte {position}, {end - position} are left")
            inner = schema.get(tag >> 3)
            if inner is None:
                position += length
            elif len(stack) >= MAX_DEPTH:
                raise PackageError(f"{path}: messages nest deeper than {MAX_DEPTH} levels at byte {position}")
            else:
                stack.append((position + length, inner))
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
            if position > end:
                raise PackageError(f"{path}: ends within a field at byte {end}")
        else:
            raise PackageError(f"{path}: a field of the wire type {kind} at byte {position}: not a Core ML model")


def _schema(descriptor: Any, known: dict[str, Schema]) -> Schema:
    found = known.get(descriptor.full_name)
    if found is None:
        made: dict[int, Any] = {}
        known[descriptor.full_name] = found = made
        for field in descriptor.fields:
            if field.message_type is not None:
                made[field.number] = _schema(field.message_type, known)
    return found


def _varint(data: bytes, position: int, end: int, path: str) -> tuple[int, int]:
    value = 0
    for index in range(_LONGEST_VARINT):
        if position >= end:
            raise PackageError(f"{path}: ends within a number at byte {end}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position
    raise PackageError(f"{path}: a number of more than {_LONGEST_VARINT} bytes at byte {position}")
