"""The header of a safetensors file, checked field by field.

Layout: the header's length as a little-endian u64, the header as JSON, then the data. The header maps each
tensor's name to its dtype, shape and range within the data; ranges cover the data without hole or overlap.
Source: the format description in the safetensors repository.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitnet_onnx.converters.checkpoints._base import TensorInfo
from bitnet_onnx.converters.checkpoints._decode import StoredTensor
from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.converters.checkpoints._types import SAFETENSORS_TYPES
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import load_object, shown

#: A Python object takes up to thirty-five times its JSON: this bounds a hostile header to some 300 MB. Real ones take
#: about 130 bytes a tensor.
MAX_HEADER = 8_000_000
MAX_DIMENSIONS = 8
#: Of a tensor.
MAX_BYTES = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a safetensors file by name, and the length of what describes them in bytes."""

    tensors: dict[str, StoredTensor]
    length: int


def read_header(file: BinaryFile, limit: int = MAX_HEADER) -> Header:
    """Read the header of a safetensors file.

    Args:
        file: the file.
        limit: the most bytes that the header may have, if less than `MAX_HEADER`.

    Raises:
        CheckpointError: the header contradicts the file or itself.
        UnsupportedError: a dtype that is not known.
    """
    if file.size < 8:
        raise CheckpointError(f"{file.path}: {file.size} bytes are too few for a safetensors file")
    length = int.from_bytes(file.read(0, 8), "little")
    limit = min(limit, MAX_HEADER)
    if length > limit:
        raise CheckpointError(f"{file.path}: header of {length} bytes exceeds the limit of {limit}")
    if length > file.size - 8:
        raise CheckpointError(f"{file.path}: header of {length} bytes, but only {file.size - 8} follow")
    header = load_object(file.read(8, length), f"{file.path}: header", max_bytes=MAX_HEADER, error=CheckpointError)
    header.pop("__metadata__", None)  # free text of the writer: of no use here
    tensors = [_entry(file, 8 + length, name, value) for name, value in header.items()]

    end = 8 + length
    for tensor in sorted(tensors, key=lambda item: (item.offset, item.info.nbytes)):
        if tensor.offset != end:
            what = "overlaps the one before it" if tensor.offset < end else "leaves a hole before it"
            raise CheckpointError(f"{file.path}: tensor {shown(tensor.info.name)} {what}, at byte {end} of the file")
        end += tensor.info.nbytes
    if end != file.size:
        raise CheckpointError(f"{file.path}: tensors end at byte {end}, the file at {file.size}")
    return Header({tensor.info.name: tensor for tensor in tensors}, length)


def _entry(file: BinaryFile, data_start: int, name: str, value: object) -> StoredTensor:
    where = f"{file.path}: tensor {shown(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: the header must give exactly dtype, shape and data_offsets")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_TYPES:
        raise UnsupportedError(f"{where}: dtype {shown(str(dtype))} is not one of {', '.join(SAFETENSORS_TYPES)}")
    kind = SAFETENSORS_TYPES[dtype]
    shape = _naturals(value["shape"])
    if shape is None or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: shape must be a list of at most {MAX_DIMENSIONS} integers >= 0")
    offsets = _naturals(value["data_offsets"])
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets must be two integers, begin <= end")
    begin, end = offsets
    if end > file.size - data_start:
        raise CheckpointError(f"{where}: ends at byte {end} of the data, which has {file.size - data_start}")
    # numpy counts the elements of an empty tensor without its zeros.
    if math.prod(max(size, 1) for size in shape) * kind.nbytes > MAX_BYTES:
        raise CheckpointError(f"{where}: {dtype} {shape} exceeds the limit of {MAX_BYTES} bytes")
    nbytes = math.prod(shape) * kind.nbytes
    if nbytes != end - begin:
        raise CheckpointError(f"{where}: {dtype} {shape} takes {nbytes} bytes, data_offsets span {end - begin}")
    info = TensorInfo(name=name, shape=tuple(shape), dtype=dtype, nbytes=nbytes, file=file.name)
    return StoredTensor(info=info, file=file, offset=data_start + begin, type=kind)


def _naturals(value: object) -> list[int] | None:
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return value
    return None
