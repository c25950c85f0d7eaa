"""Blocks of ternary codes, as ggml and bitnet.cpp lay them out.

A code is 0, 1, 2 (or 3, where two bits can hold it) and means `d * (code - 1)`. Source: `dequantize_row_tq1_0`,
`dequantize_row_tq2_0` and `dequantize_row_q2_0` of ggml, `quantize_i2_s` of bitnet.cpp.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints._types import StorageType
from bitnet_onnx.quantized import ByteArray, FloatArray

# Digit n of a TQ1_0 byte: the byte is a binary fraction of 256, and multiplying by 3 moves a base-3 digit above the
# point. Every byte has digits from 0 to 2 so.
_TRITS = np.array([[(byte * 3**n & 0xFF) * 3 >> 8 for byte in range(256)] for n in range(5)], np.uint8)

_I2_S_SHIFTS = np.array([6, 4, 2, 0], np.uint8)[:, None]
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
_THREE = np.uint8(3)


def block_codes(kind: StorageType, raw: ByteArray) -> ByteArray:
    """The codes of blocks: uint8 `[blocks, nbytes]` to uint8 `[blocks, block]`."""
    count = len(raw)
    if kind.name == "TQ1_0":  # 32 bytes of 5 digits, 16 of 5, 4 of 4; digit by digit over each run
        parts = [_TRITS[n][raw[:, first:last]] for first, last, digits in _RUNS for n in range(digits)]
        return np.concatenate(parts, axis=1)
    if kind.name == "TQ2_0":  # two runs of 32 bytes, each two bits by two bits
        runs = raw[:, :64].reshape(count, 2, 1, 32)
        return (runs >> _SHIFTS[:, None] & _THREE).reshape(count, 256)
    if kind.name == "I2_S":  # 32 bytes, the first 32 weights in the highest bits
        return (raw[:, None, :] >> _I2_S_SHIFTS & _THREE).reshape(count, 128)
    return (raw[:, 2:, None] >> _SHIFTS & _THREE).reshape(count, kind.block)  # Q2_0: byte by byte, lowest bits first


_RUNS = ((0, 32, 5), (32, 48, 5), (48, 52, 4))


def block_scales(kind: StorageType, raw: ByteArray) -> FloatArray:
    """The scale of each block that carries one (not I2_S): float32 `[blocks]`."""
    place = slice(0, 2) if kind.name == "Q2_0" else slice(-2, None)
    halves: npt.NDArray[np.float16] = np.ascontiguousarray(raw[:, place]).view("<f2")[:, 0]
    return halves.astype(np.float32)
