"""Attention of the reference: one sequence, from its first token, no cache."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.decoder import Attention, DecoderSpec, Rotary
from bitnet_onnx.quantized import FloatArray

#: Scores held at once.
_CHUNK: Final = 1 << 22


def attend(query: FloatArray, key: FloatArray, value: FloatArray, spec: DecoderSpec, layer: Attention) -> FloatArray:
    """Causal attention with grouped heads; the softmax is computed in float64.

    Args:
        query: float32 `[T, heads, D]`.
        key: float32 `[T, key_value_heads, D]`.
        value: as `key`.
        spec: scale and soft cap.
        layer: rotation and window.

    Returns:
        float32 `[T, heads * D]`.
    """
    count, heads, dim = query.shape
    positions = np.arange(count)
    if layer.rotary is not None:
        query, key = (rotate(part, positions, layer.rotary) for part in (query, key))
    scale = 1 / math.sqrt(dim) if spec.attention_scale is None else spec.attention_scale
    shared = heads // key.shape[1]
    result = np.empty((count, heads, dim), np.float32)
    step = max(1, _CHUNK // count)
    for head in range(heads):
        keys, values = (part[:, head // shared].astype(np.float64) for part in (key, value))
        for start in range(0, count, step):
            queries = slice(start, start + step)
            scores = query[queries, head].astype(np.float64) @ keys.T * scale
            if spec.attention_softcap:
                scores = spec.attention_softcap * np.tanh(scores / spec.attention_softcap)
            distance = positions[queries, None] - positions
            seen = distance >= 0
            if layer.window:
                seen &= distance < layer.window
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            result[queries, head] = weights / weights.sum(axis=-1, keepdims=True) @ values
    return result.reshape(count, heads * dim)


def rotate(x: FloatArray, positions: npt.NDArray[np.int64], rotary: Rotary) -> FloatArray:
    """Rotate pairs of features by angles that grow with the position (Su et al., "RoFormer", 2021).

    Args:
        x: float32 `[T, heads, D]`.
        positions: `[T]`.
        rotary: which pairs, and how fast.
    """
    half = rotary.dim // 2
    angles = _angles(positions, rotary)[:, None, :]
    cosine, sine = ((turn(angles) * rotary.magnitude).astype(np.float32) for turn in (np.cos, np.sin))
    pairs = np.arange(half)
    first, second = (2 * pairs, 2 * pairs + 1) if rotary.interleaved else (pairs, pairs + half)
    result = x.copy()
    result[..., first] = x[..., first] * cosine - x[..., second] * sine
    result[..., second] = x[..., second] * cosine + x[..., first] * sine
    return result


def _angles(positions: npt.NDArray[np.int64], rotary: Rotary) -> npt.NDArray[np.float64]:
    """Radians `[T, dim / 2]`; frequencies and products are rounded to float32, as models were trained."""
    places = positions.astype(np.float64)
    base = np.full(len(places), rotary.theta)
    if rotary.dynamic_factor:
        # bloc97, "Dynamically scaled RoPE", 2023: the base grows with the length of the sequence.
        growth = rotary.dynamic_factor * (places + 1) / rotary.original_context - (rotary.dynamic_factor - 1)
        beyond = positions >= rotary.original_context
        base[beyond] *= growth[beyond] ** (rotary.dim / (rotary.dim - 2))
    inverse = base[:, None] ** -(np.arange(0, rotary.dim, 2) / rotary.dim)
    if rotary.divisors:
        inverse /= np.array(rotary.divisors)
    angles = inverse.astype(np.float32) * positions.astype(np.float32)[:, None]
    return angles.astype(np.float64)
