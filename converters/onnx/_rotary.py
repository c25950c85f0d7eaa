"""Cosine and sine tables for GroupQueryAttention."""

from __future__ import annotations

from typing import Final

import numpy as np

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.quantized import FloatArray

#: Of both tables: a million positions with 128 rotated features. A configuration that lies must not fill the memory.
_MAX_BYTES: Final = 1 << 29


def tables(spec: DecoderSpec) -> list[tuple[str, FloatArray]]:
    """`cos` and `sin`, float32 `[context_length, rotary.dim / 2]`.

    Frequency i is `theta^(-2i/dim)` divided by `divisors[i]`. It is rounded to float32 before the product with the
    position, as the reference implementation does: at position 8000 a float64 frequency would differ by 5e-4.
    """
    rotary = spec.rotary
    if (size := spec.context_length * rotary.dim * 4) > _MAX_BYTES:
        raise CheckpointError(
            f"config.json: max_position_embeddings is {spec.context_length}: with {rotary.dim} rotated features the "
            f"rotary tables have {size} bytes, more than the limit of {_MAX_BYTES}; write a shorter context into it"
        )
    exponent = np.arange(0, rotary.dim, 2, dtype=np.float32) / np.float32(rotary.dim)
    inverse = np.float32(1) / np.power(np.float32(rotary.theta), exponent, dtype=np.float32)
    if rotary.divisors:
        inverse = inverse / np.array(rotary.divisors, np.float32)
    angles = np.outer(np.arange(spec.context_length, dtype=np.float32), inverse)
    cosine, sine = np.cos(angles), np.sin(angles, out=angles)
    for table in (cosine, sine):
        table *= np.float32(rotary.magnitude)
    return [("cos_cache", cosine), ("sin_cache", sine)]
