"""The numpy reference of `bitnet::GroupQueryAttention`, described in `docs/attention.md`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import FloatArray

IntArray = npt.NDArray[np.int32]
#: Keys or values: float32, or int8 with `CacheScales`.
CacheArray = npt.NDArray[np.float32 | np.int8]

#: Length of a head: kernels take whole vectors of 8 floats, and keep the rows of a block on the stack.
HEAD_MULTIPLE = 8
MAX_HEAD_DIM = 512


@dataclass(frozen=True, slots=True)
class AttentionAttributes:
    """Attributes of one operator node.

    Attributes:
        num_heads: query heads, a multiple of `kv_num_heads`.
        kv_num_heads: key and value heads.
        do_rotary: queries and keys are rotated by their positions.
        rotary_interleaved: pairs are neighbours (2i, 2i+1) and not halves (i, i + dim/2).
        scale: of the scores; None is `1 / sqrt(head_dim)`.
        local_window_size: keys that a query sees, itself included; -1 is all before it.
        softcap: scores become `softcap * tanh(score / softcap)`; 0 is off.
    """

    num_heads: int
    kv_num_heads: int
    do_rotary: bool
    rotary_interleaved: bool = False
    scale: float | None = None
    local_window_size: int = -1
    softcap: float = 0.0

    def __post_init__(self) -> None:
        if self.kv_num_heads < 1 or self.num_heads < 1 or self.num_heads % self.kv_num_heads:
            raise InputError(
                f"num_heads is {self.num_heads} and kv_num_heads is {self.kv_num_heads}: "
                "the first must be a positive multiple of the second"
            )
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"scale is {self.scale}: it must be finite and greater than 0")
        if self.local_window_size != -1 and self.local_window_size < 1:
            raise InputError(f"local_window_size is {self.local_window_size}: it must be -1 or at least 1")
        if not (math.isfinite(self.softcap) and self.softcap >= 0):
            raise InputError(f"softcap is {self.softcap}: it must be finite and not negative")


@dataclass(frozen=True, slots=True)
class Rotary:
    """Tables of the rotation, float32 `[positions, dim / 2]`; `dim` may be less than the head's length."""

    cosine: FloatArray
    sine: FloatArray


@dataclass(frozen=True, slots=True)
class CacheScales:
    """The value of one step of an int8 key and of an int8 value, float32 `[kv_num_heads, D]`.

    Raises:
        InputError: a scale is not a positive, finite and normal number.
    """

    key: FloatArray
    value: FloatArray

    def __post_init__(self) -> None:
        limits = np.finfo(np.float32)
        for name, scale in (("key_scale", self.key), ("value_scale", self.value)):
            wrong = np.argwhere(~((scale >= limits.tiny) & (scale <= limits.max)))
            if wrong.size:
                place = tuple(int(i) for i in wrong[0])
                raise InputError(
                    f"{name}{list(place)} is {scale[place]}: it must be a positive, finite and normal number"
                )


@dataclass(frozen=True, slots=True)
class Attended:
    """The operator's outputs."""

    output: FloatArray
    present_key: CacheArray
    present_value: CacheArray


def group_query_attention(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    past: tuple[CacheArray, CacheArray],
    seqlens_k: IntArray,
    total_sequence_length: int,
    attributes: AttentionAttributes,
    rotary: Rotary | None = None,
    query_seqlens: IntArray | None = None,
    scales: CacheScales | None = None,
) -> Attended:
    """Causal attention with grouped heads behind a cache; the softmax is computed in float64.

    Args:
        query: float32 `[B, S, num_heads * D]`.
        key: float32 `[B, S, kv_num_heads * D]`.
        value: as `key`.
        past: keys and values, `[B, kv_num_heads, length, D]`; float32 or, with `scales`, int8; keys are rotated.
        seqlens_k: int32 `[B]`, tokens of each row after this call, less one.
        total_sequence_length: the largest of them, or more.
        attributes: of the node.
        rotary: tables, where `do_rotary` is set.
        query_seqlens: int32 `[B]`, tokens of each row in this call; the rest of `S` is padding.
        scales: of an int8 cache.

    Raises:
        InputError: a length is out of range.
    """
    batch, sequence, _ = query.shape
    heads, kv_heads = attributes.num_heads, attributes.kv_num_heads
    past_length, head_dim = past[0].shape[2:]
    present_shape = batch, kv_heads, max(past_length, total_sequence_length), head_dim
    present = np.zeros(present_shape, past[0].dtype), np.zeros(present_shape, past[1].dtype)
    steps = (None, None) if scales is None else (scales.key, scales.value)
    output = np.zeros((batch, sequence, heads, head_dim), np.float32)
    for b in range(batch):
        total = int(seqlens_k[b]) + 1
        most = min(sequence, total)
        count = most if query_seqlens is None else int(query_seqlens[b])
        if not (1 <= total <= total_sequence_length and 0 <= count <= most and total - count <= past_length):
            raise InputError(
                f"row {b} has {total} tokens, {count} of them new: at most {total_sequence_length} tokens with "
                f"{most} new ones and {past_length} old ones are possible"
            )
        positions = np.arange(total - count, total)
        parts = (query, heads), (key, kv_heads), (value, kv_heads)
        rows = [part[b, :count].reshape(count, width, head_dim) for part, width in parts]
        if rotary is not None and attributes.do_rotary:
            rows[:2] = [_rotated(part, positions, rotary, attributes.rotary_interleaved) for part in rows[:2]]
        seen = []
        for cache, old, new, step in zip(present, past, rows[1:], steps, strict=True):
            cache[b, :, : total - count] = old[b, :, : total - count]
            cache[b, :, total - count : total] = (new if step is None else quantize_rows(new, step)).swapaxes(0, 1)
            real = cache[b, :, :total].astype(np.float64)
            seen.append(np.repeat(real if step is None else real * step[:, None], heads // kv_heads, axis=0))
        scores = np.einsum("qhd,hkd->hqk", rows[0].astype(np.float64), seen[0])
        weights = _softmax(_masked(scores, positions, attributes, head_dim))
        output[b, :count] = np.einsum("hqk,hkd->qhd", weights, seen[1])
    return Attended(output.reshape(batch, sequence, heads * head_dim), *present)


def quantize_rows(x: FloatArray, step: FloatArray) -> npt.NDArray[np.int8]:
    """Codes of keys or values `[..., kv_num_heads, D]`: multiples of `step`, half to even; 127 for NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        multiples = np.rint(x * (np.float32(1) / step))
    return np.clip(np.where(np.isnan(multiples), np.float32(127), multiples), -128, 127).astype(np.int8)


def _rotated(x: FloatArray, positions: npt.NDArray[np.int64], rotary: Rotary, interleaved: bool) -> FloatArray:
    """Rotary position embedding of `[tokens, heads, D]` (Su et al., "RoFormer", 2021)."""
    cosine, sine = rotary.cosine[positions, None], rotary.sine[positions, None]
    half = cosine.shape[-1]
    first, second = slice(half), slice(half, 2 * half)
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    a, b = x[..., first], x[..., second]
    result = x.copy()
    result[..., first] = a * cosine - b * sine
    result[..., second] = b * cosine + a * sine
    return result


def _masked(
    scores: npt.NDArray[np.float64], positions: npt.NDArray[np.int64], attributes: AttentionAttributes, head_dim: int
) -> npt.NDArray[np.float64]:
    """Scaled and capped scores `[heads, queries, keys]`, minus infinity where a key is not seen."""
    scores = scores * (attributes.scale or 1 / math.sqrt(head_dim))
    if attributes.softcap:
        scores = attributes.softcap * np.tanh(scores / attributes.softcap)
    distance = positions[:, None] - np.arange(scores.shape[-1])
    unseen = distance < 0
    if attributes.local_window_size != -1:
        unseen |= distance >= attributes.local_window_size
    return np.where(unseen, -np.inf, scores)


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
        weights: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return weights
