"""The numpy reference of `bitnet::GroupQueryAttention`, described in `docs/attention.md`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import FloatArray

IntArray = npt.NDArray[np.int32]

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
