"""Arrays in a safetensors file that is written and read in one pass, with a checksum over all of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.converters.checkpoints._safetensors_reader import read_header
from bitnet_onnx.errors import CheckpointError

Arrays = Mapping[str, npt.NDArray[Any]]

_TYPES: Final = {"float32": "F32", "int8": "I8"}
#: Bytes hashed and written at once.
_PART: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Written:
    """What a file holds: its length in bytes and the SHA-256 of them."""

    size: int
    sha256: str


def write_tensors(path: Path, arrays: Arrays) -> Written:
    """Write arrays, and return when they are on the disk.

    Args:
        path: of a new file.
        arrays: float32 or int8, contiguous.

    Raises:
        OSError: the disk is full, or whatever else the system says.
    """
    entries: dict[str, object] = {}
    offset = 0
    for name, array in arrays.items():
        entries[name] = {
            "dtype": _TYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(header).to_bytes(8, "little"), header):
            digest.update(part)
            file.write(part)
        for array in arrays.values():
            data = array.reshape(-1).view(np.uint8).data
            for start in range(0, len(data), _PART):
                digest.update(data[start : start + _PART])
                file.write(data[start : start + _PART])
        file.flush()
        os.fsync(file.fileno())
    return Written(8 + len(header) + offset, digest.hexdigest())


def read_tensors(path: Path, arrays: Arrays, written: Written) -> None:
    """Fill arrays from a file; after an error their values mean nothing.

    Args:
        path: of the file.
        arrays: exactly those that the file must have.
        written: what it must be.

    Raises:
        CheckpointError: the file is not there, is not what was written, or has other tensors.
    """
    with BinaryFile(path) as file:
        if file.size != written.size:
            raise CheckpointError(f"{path}: {file.size} bytes, expected {written.size}")
        header = read_header(file)
        if missing := sorted(arrays.keys() ^ header.tensors.keys()):
            what = "is missing" if missing[0] in arrays else "has no place in this run"
            raise CheckpointError(f"{path}: tensor {missing[0]!r:.80} {what}")
        digest = hashlib.sha256(file.read(0, 8 + header.length))
        for name, stored in sorted(header.tensors.items(), key=lambda item: (item[1].offset, item[1].info.nbytes)):
            array = arrays[name]
            if stored.info.shape != array.shape or stored.info.dtype != _TYPES[array.dtype.name]:
                raise CheckpointError(
                    f"{path}: tensor {name:.80} is {stored.info.dtype} {list(stored.info.shape)}, "
                    f"expected {_TYPES[array.dtype.name]} {list(array.shape)}"
                )
            data = array.reshape(-1).view(np.uint8)
            for start in range(0, len(data), _PART):
                file.read_into(stored.offset + start, data[start : start + _PART])
                digest.update(data[start : start + _PART].data)
        if digest.hexdigest() != written.sha256:
            raise CheckpointError(f"{path}: its checksum is not that which was written")
