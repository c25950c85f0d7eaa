"""Stored numbers to float32, a bounded piece at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints._base import TensorInfo
from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.converters.checkpoints._types import StorageType
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import shown

FloatArray: TypeAlias = npt.NDArray[np.float32]

#: Elements decoded at once: a multiple of every block size, small against any large tensor.
_CHUNK = 1 << 20

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_INTEGERS = {"U8": np.uint8, "I8": np.int8}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor whose place in its file has been checked."""

    info: TensorInfo
    file: BinaryFile
    offset: int
    type: StorageType

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.info.nbytes // self.type.nbytes * self.type.block

    def decode(self, start: int, stop: int) -> FloatArray:
        """Elements `start` to `stop` in storage order, as a new float32 array.

        Raises:
            CheckpointError: one of them is NaN or infinite, or the file has shrunk.
            UnsupportedError: the stored type is not a floating-point or block type.
        """
        out = np.empty(stop - start, np.float32)
        kind = self.type
        for first in range(start, stop, _CHUNK):
            last = min(first + _CHUNK, stop)
            raw = np.empty((last - first) // kind.block * kind.nbytes, np.uint8)
            self.file.read_into(self.offset + first // kind.block * kind.nbytes, raw)
            piece = out[first - start : last - start]
            # Broken scales overflow on the way; what matters is caught by the check below.
            with np.errstate(all="ignore"):
                _widen(kind.name, raw, piece, self)
            finite = np.isfinite(piece)
            if not finite.all():
                at = first + int(np.argmin(finite))
                raise CheckpointError(
                    f"{self.file.path}: tensor {shown(self.info.name)} holds {piece[at - first]} at element {at}; "
                    "weights must be finite"
                )
        return out

    def raw(self) -> npt.NDArray[np.uint8] | npt.NDArray[np.int8]:
        """The stored integers of a U8 or I8 tensor, in its shape."""
        if self.type.name not in _INTEGERS:
            raise CheckpointError(
                f"{self.file.path}: tensor {shown(self.info.name)} is {self.type.name}; packed integers are U8 or I8"
            )
        values: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
        values = np.empty(self.size, _INTEGERS[self.type.name])
        self.file.read_into(self.offset, values)
        return values.reshape(self.info.shape)


def _widen(name: str, raw: npt.NDArray[np.uint8], out: FloatArray, tensor: StoredTensor) -> None:
    if name == "BF16":
        # bfloat16 is the upper half of a float32.
        bits = out.view(np.uint32)
        bits[:] = raw.view("<u2")
        bits <<= np.uint32(16)
    elif name in _FLOATS:
        out[:] = raw.view(_FLOATS[name])
    elif tensor.type.block > 1:
        # Imported here: only GGUF block types need it.
        from gguf import GGMLQuantizationType, quants

        out[:] = quants.dequantize(raw.reshape(1, -1), GGMLQuantizationType[name])[0]
    else:
        raise UnsupportedError(
            f"{tensor.file.path}: tensor {shown(tensor.info.name)} is {name}; weights are read from "
            f"{', '.join([*_FLOATS, 'BF16'])} or GGUF block types"
        )
