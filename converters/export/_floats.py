"""Float32 values as smaller floats, with an account of what that changed."""

from __future__ import annotations

import enum
from typing import Final

import numpy as np

from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.json_input import shown
from bitnet_onnx.metrics import Error
from bitnet_onnx.quantized import FloatArray

_HALF_MAX: Final = float(np.finfo(np.float16).max)


class FloatType(enum.StrEnum):
    """Types of floats in the files that are written."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def nbytes(self) -> int:
        """Of one value."""
        return 4 if self is FloatType.FLOAT32 else 2


class Rounding:
    """Counts the values that a smaller type changed, and measures by how much."""

    def __init__(self) -> None:
        self.values = 0
        self.changed = 0
        self._error = Error()

    def add(self, before: FloatArray, after: FloatArray) -> None:
        """Take values and what became of them into account."""
        self.values += before.size
        self.changed += int(np.count_nonzero(before != after))
        self._error.add(before, after)

    @property
    def relative_error(self) -> float:
        """Root of the squared error over the root of the squared values."""
        return self._error.relative

    def sentence(self, what: str, kind: str) -> str | None:
        """`matrices as float16: 3 of 40 values rounded, relative error 0.017 %`, or None where none was."""
        if not self.changed:
            return None
        percent = f"{100 * self.relative_error:.2g} %"
        return f"{what} as {kind}: {self.changed} of {self.values} values rounded, relative error {percent}"


def encode(values: FloatArray, kind: FloatType, name: str, rounding: Rounding) -> bytes:
    """Little-endian bytes of values in another type, rounded half to even.

    Raises:
        UnsupportedError: a value is beyond the range of float16.
    """
    if kind is FloatType.FLOAT32:
        rounding.values += values.size
        return values.astype("<f4", copy=False).tobytes()
    if kind is FloatType.FLOAT16:
        peak = float(np.abs(values).max(initial=0))
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        if not np.isfinite(half).all():
            raise UnsupportedError(
                f"tensor {shown(name)} holds {peak:g}: float16 ends at {_HALF_MAX:g}; choose bfloat16 or float32"
            )
        rounding.add(values, half.astype(np.float32))
        return half.tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32)
    upper = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    wide = (upper << np.uint32(16)).astype(np.uint32).view(np.float32)
    if not np.isfinite(wide).all():
        raise UnsupportedError(f"tensor {shown(name)} holds a value beyond the range of bfloat16; choose float32")
    rounding.add(values, wide)
    return upper.astype("<u2").tobytes()
