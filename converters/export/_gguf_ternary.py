"""Ternary codes as blocks of ggml: 256 weights with a float16 scale (TQ1_0, TQ2_0), or 32 (Q4_0).

Layouts: `quantize_row_tq1_0_ref`, `quantize_row_tq2_0_ref` and `quantize_row_q4_0_ref` of ggml. The codes are taken as
they are; nothing is rounded but the scale.
"""

from __future__ import annotations

import enum
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.quantized import ByteArray, FloatArray, QuantizedTensor

_POWERS: Final = np.array([81, 27, 9, 3, 1], np.uint16)


class GgufTernary(enum.StrEnum):
    """Types that hold ternary matrices in a GGUF."""

    #: 2.06 bits a weight, the faster one
    TQ2_0 = "tq2_0"
    #: 1.69 bits a weight
    TQ1_0 = "tq1_0"
    #: 4.5 bits a weight, for rows or groups that are not whole blocks of 256
    Q4_0 = "q4_0"

    @property
    def block(self) -> int:
        """Weights of a block."""
        return 32 if self is GgufTernary.Q4_0 else 256

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return {GgufTernary.TQ2_0: 66, GgufTernary.TQ1_0: 54, GgufTernary.Q4_0: 18}[self]

    def fits(self, tensor: QuantizedTensor) -> bool:
        """Whether the rows of a matrix are whole blocks, and each block has one scale."""
        return not tensor.shape[1] % self.block and not tensor.grid.group_size % self.block


def block_scales(tensor: QuantizedTensor, kind: GgufTernary) -> FloatArray:
    """The scale of each block of a matrix that fits, float32 `[rows, blocks of a row]`."""
    rows, columns = tensor.shape
    blocks = columns // kind.block
    if tensor.grid.group_size:
        return np.repeat(tensor.scale, tensor.grid.group_size // kind.block, axis=1)[:, :blocks]
    return np.broadcast_to(tensor.scale.reshape(-1, 1), (rows, blocks))


def pack_blocks(tensor: QuantizedTensor, scales: npt.NDArray[np.float16], kind: GgufTernary) -> ByteArray:
    """The blocks of a matrix, uint8 `[rows, bytes of a row]`.

    Args:
        tensor: codes 1, 2, 3 on the grid of `TERNARY`.
        scales: of each block.
        kind: which layout.
    """
    rows, columns = tensor.shape
    codes = (tensor.raw - np.uint8(1)).reshape(-1, kind.block)
    packed = np.empty((len(codes), kind.block_bytes), np.uint8)
    halves = np.ascontiguousarray(scales, "<f2").reshape(-1, 1).view(np.uint8)
    packed[:, slice(0, 2) if kind is GgufTernary.Q4_0 else slice(-2, None)] = halves
    if kind is GgufTernary.Q4_0:
        # Code 8 is zero; the first half of a block lies in the lower four bits.
        packed[:, 2:] = (codes[:, :16] + np.uint8(7)) | (codes[:, 16:] + np.uint8(7)) << np.uint8(4)
    elif kind is GgufTernary.TQ2_0:
        runs = codes.reshape(-1, 2, 4, 32)
        bits = runs[:, :, 0].copy()
        for index in range(1, 4):
            bits |= runs[:, :, index] << np.uint8(2 * index)
        packed[:, :64] = bits.reshape(-1, 64)
    else:
        first = 0
        for start, width, digits in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
            run = codes[:, start : start + width * digits].reshape(-1, digits, width)
            number = np.einsum("bdw,d->bw", run.astype(np.uint16), _POWERS[:digits])
            # A fraction of 243 becomes one of 256, rounded up, so that multiplying by 3 gives the digits back.
            packed[:, first : first + width] = (number * np.uint32(256) + np.uint32(242)) // np.uint32(243)
            first += width
    return packed.reshape(rows, columns // kind.block * kind.block_bytes)
