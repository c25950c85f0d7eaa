"""Stored numbers to float32, a bounded piece at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints._base import TensorInfo
from bitnet_onnx.converters.checkpoints._files import BinaryFile
from bitnet_onnx.converters.checkpoints._gguf_ternary import block_codes, block_scales
from bitnet_onnx.converters.checkpoints._types import TERNARY_TYPES, StorageType
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import shown

FloatArray: TypeAlias = npt.NDArray[np.float32]

#: Elements decoded at once: a multiple of every block size, small against any large tensor.
_CHUNK = 1 << 20

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


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
        return math.prod(self.info.shape)

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
            piece = out[first - start : last - start]
            if kind.name in TERNARY_TYPES:
                codes, scales = self.ternary(first, last)
                blocks = piece.reshape(codes.shape)
                np.subtract(codes, np.float32(1), out=blocks, dtype=np.float32)
                blocks *= scales[:, None]
                continue
            raw = self._bytes(first, last)
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

    def ternary(self, start: int, stop: int) -> tuple[npt.NDArray[np.uint8], FloatArray]:
        """Codes `[blocks, block]` and scales `[blocks]` of elements `start` to `stop`, in storage order.

        A code means `scale * (code - 1)`; 3 occurs only where the type gives it a meaning.

        Raises:
            CheckpointError: a scale is negative (no quantizer writes one) or not finite, or an I2_S code is 3.
        """
        kind = self.type
        raw = self._bytes(start, stop).reshape(-1, kind.nbytes)
        codes = block_codes(kind, raw)
        if kind.name == "I2_S":
            value = np.empty(1, "<f4")
            self.file.read_into(self.offset + self.info.nbytes - kind.tail, value)
            scales = np.repeat(value.astype(np.float32), len(raw))
            wrong = codes == 3
            if wrong.any():
                raise CheckpointError(
                    f"{self.file.path}: tensor {shown(self.info.name)} holds code 3 at element "
                    f"{start + int(np.argmax(wrong))}; I2_S has 0, 1 and 2: is it of another layout?"
                )
        else:
            scales = block_scales(kind, raw)
        good = np.isfinite(scales) & (scales >= 0)
        if not good.all():
            at = int(np.argmin(good))
            raise CheckpointError(
                f"{self.file.path}: tensor {shown(self.info.name)} has scale {scales[at]} at element "
                f"{start + at * kind.block}; scales are finite and not negative"
            )
        return codes, scales

    def _bytes(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        kind = self.type
        raw = np.empty((stop - start) // kind.block * kind.nbytes, np.uint8)
        self.file.read_into(self.offset + start // kind.block * kind.nbytes, raw)
        return raw


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
