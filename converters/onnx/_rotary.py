"""Cosine and sine tables for GroupQueryAttention."""

from __future__ import annotations

import numpy as np

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.quantized import FloatArray


def tables(spec: DecoderSpec) -> list[tuple[str, FloatArray]]:
    """`cos` and `sin`, float32 `[context_length, rotary.dim / 2]`.

    Frequency i is `theta^(-2i/dim)` divided by `divisors[i]`. It is rounded to float32 before the product with the
    position, as the reference implementation does: at position 8000 a float64 frequency would differ by 5e-4.
    """
    rotary = spec.rotary
    exponent = np.arange(0, rotary.dim, 2, dtype=np.float32) / np.float32(rotary.dim)
    inverse = np.float32(1) / np.power(np.float32(rotary.theta), exponent, dtype=np.float32)
    if rotary.divisors:
        inverse = inverse / np.array(rotary.divisors, np.float32)
    angles = np.outer(np.arange(spec.context_length, dtype=np.float32), inverse)
    magnitude = np.float32(rotary.magnitude)
    return [("cos_cache", np.cos(angles) * magnitude), ("sin_cache", np.sin(angles) * magnitude)]
