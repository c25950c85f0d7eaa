"""Float32 values as smaller floats, with an account of what that changed."""

from __future__ import annotations

import enum
from typing import Final

import numpy as np

from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.json_input import shown
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
    """Counts the values that a smaller type changed."""

    def __init__(self) -> None:
        self.values = 0
        self.changed = 0
        self.largest = 0.0

    def add(self, before: FloatArray, after: FloatArray) -> None:
        """Take values and what became of them into account."""
        self.values += before.size
        different = before != after
        count = int(np.count_nonzero(different))
        if count:
            self.changed += count
            was = before[different].astype(np.float64)
            relative = np.abs(after[different] - was) / np.maximum(np.abs(was), np.finfo(np.float32).tiny)
            self.largest = max(self.largest, float(relative.max()))

    def sentence(self, what: str, kind: str) -> str | None:
        """`norms and biases as float16: 3 of 40 values rounded, by at most 0.05 %`, or None where none was."""
        if not self.changed:
            return None
        return f"{what} as {kind}: {self.changed} of {self.values} values rounded, by at most {self.largest:.2g} of them"


def encode(values: FloatArray, kind: FloatType, name: str, rounding: Rounding) -> bytes:
    """Little-endian bytes of values in another type, rounded half to even.

    Raises:
        UnsupportedError: a value is beyond the range of float16.
    """
    if kind is FloatType.FLOAT32:
        rounding.add(values, values)
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
