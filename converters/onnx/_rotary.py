"""Cosine and sine tables for GroupQueryAttention."""

from __future__ import annotations

from typing import Final

import numpy as np

from bitnet_onnx.decoder import Rotary
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.quantized import FloatArray

#: Of both tables: a million positions with 128 rotated features. A configuration that lies must not fill the memory.
_MAX_BYTES: Final = 1 << 29
#: GroupQueryAttention refuses tables of another width, and only when it runs.
_WIDTH_MULTIPLE: Final = 8


def table_width(rotary: Rotary) -> int:
    """Columns of a table: half the rotated features, up to a width that is taken."""
    return -(-rotary.dim // 2 // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE


def tables(rotary: Rotary, context_length: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines, float32 `[context_length, table_width]` each, of angle 0 beyond `rotary.dim / 2`.

    Frequency i is `theta^(-2i/dim)` divided by `divisors[i]`. It is rounded to float32 before the product with the
    position, as the reference implementation does: at position 8000 a float64 frequency would differ by 5e-4.
    With dynamic scaling the frequencies of a position are those that the reference has when the position is the last
    of the sequence, as it is when tokens come one by one.

    Raises:
        CheckpointError: the tables would not fit into `2^29` bytes.
    """
    if (size := context_length * 2 * table_width(rotary) * 4) > _MAX_BYTES:
        raise CheckpointError(
            f"config.json: max_position_embeddings is {context_length}: with {rotary.dim} rotated features the "
            f"rotary tables have {size} bytes, more than the limit of {_MAX_BYTES}; choose a shorter --context"
        )
    exponent = np.arange(0, rotary.dim, 2, dtype=np.float32) / np.float32(rotary.dim)
    inverse = np.float32(1) / np.power(np.float32(rotary.theta), exponent, dtype=np.float32)
    if rotary.divisors:
        inverse = inverse / np.array(rotary.divisors, np.float32)
    positions = np.arange(context_length, dtype=np.float32)
    angles = np.outer(positions, inverse)
    if rotary.dynamic_factor and context_length > rotary.original_context:
        beyond = slice(rotary.original_context, None)
        angles[beyond] = positions[beyond, None] * _dynamic(rotary, positions[beyond], exponent)
    cosine, sine = np.cos(angles), np.sin(angles, out=angles)
    for table in (cosine, sine):
        table *= np.float32(rotary.magnitude)
    missing = (0, 0), (0, table_width(rotary) - cosine.shape[1])
    if missing[1][1]:
        cosine, sine = np.pad(cosine, missing, constant_values=1), np.pad(sine, missing)
    return cosine, sine


def _dynamic(rotary: Rotary, positions: FloatArray, exponent: FloatArray) -> FloatArray:
    """Inverse frequencies `[positions, dim / 2]` of dynamic NTK scaling."""
    factor, dim = rotary.dynamic_factor, rotary.dim
    growth = factor * (positions.astype(np.float64) + 1) / rotary.original_context - (factor - 1)
    base = rotary.theta * growth ** (dim / (dim - 2))
    return (1 / base[:, None] ** exponent).astype(np.float32)
