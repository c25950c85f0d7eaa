"""Ternary tensors of a GGUF file as codes and scales, without loss."""

from __future__ import annotations

from typing import Final

import numpy as np

from bitnet_onnx.converters.checkpoints._decode import StoredTensor
from bitnet_onnx.quantized import TERNARY, FloatArray, Grid, QuantizedTensor

#: Elements looked at at once: the result takes a byte an element, what it takes to make it must stay small.
_CHUNK: Final = 1 << 20
#: -1, 0, 1, 2 are 0, 1, 2, 3: for a matrix that holds 2.
_WIDE: Final = Grid(bits=2, zero_point=1)


def read_ternary(tensor: StoredTensor) -> QuantizedTensor:
    """The codes of a matrix with the fewest scales that say the same: one, one a row, or one a block.

    Where a scale is zero the codes become those of zero, and a block of zeros takes any scale.

    Raises:
        CheckpointError: a code or a scale that cannot be.
    """
    rows, columns = tensor.info.shape
    raw = np.empty((rows, columns), np.uint8)
    scale = np.empty((rows, columns // tensor.type.block), np.float32)
    wide = False
    step = max(1, _CHUNK // columns)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        codes, scales = tensor.ternary(first * columns, last * columns)
        codes[scales == 0] = 1
        scales[(codes == 1).all(axis=1)] = 0
        wide = wide or bool((codes == 3).any())
        raw[first:last] = codes.reshape(-1, columns)
        scale[first:last] = scales.reshape(last - first, -1)
    grid = _WIDE if wide else TERNARY
    raw += np.uint8(grid.zero_point - 1)
    collapsed = collapse(scale)
    group = tensor.type.block if collapsed.ndim == 2 else 0
    return QuantizedTensor(raw, collapsed, Grid(grid.bits, grid.zero_point, group))


def collapse(scale: FloatArray) -> FloatArray:
    """Scales `[N, groups]`, where 0 stands for any, as `[1]`, `[N]` or `[N, groups]` without a 0."""
    high: FloatArray = scale.max(axis=1)
    top = high.max() or np.float32(1)
    high[high == 0] = top
    filled: FloatArray = np.where(scale == 0, high[:, None], scale)
    if (filled != high[:, None]).any():
        return filled
    # A row of zeros has got the largest scale of all, so that it stands in no one's way.
    return high[:1] if (high == top).all() else high
