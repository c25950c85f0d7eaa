"""Rotary embedding out of a configuration, context extension included."""

from __future__ import annotations

import math

import numpy as np

from bitnet_onnx.converters._config import Config
from bitnet_onnx.decoder import Rotary
from bitnet_onnx.errors import CheckpointError, UnsupportedError

KNOWN_TYPES = ("default", "linear", "llama3")
#: The runtime's limit too. Tables are made before the weights are looked at: a lie must not fill the memory.
_MAX_HEAD_DIM = 4096


def rotary(config: Config, head_dim: int) -> Rotary:
    """Read theta and the scaling rule.

    transformers 5 writes one `rope_parameters` object; older files have `rope_theta` and `rope_scaling`.
    `rope_factors` is what a GGUF carries instead: one divisor for each inverse frequency.

    Raises:
        UnsupportedError: a scaling rule that is not implemented, by name.
        CheckpointError: fields that contradict each other.
    """
    if head_dim > _MAX_HEAD_DIM:
        raise CheckpointError(f"config.json: head_dim is {head_dim}: the limit is {_MAX_HEAD_DIM}")
    scaling = config.child("rope_parameters") or config.child("rope_scaling")
    theta_owner = scaling if scaling is not None and "rope_theta" in scaling else config
    theta = theta_owner.number("rope_theta", 10000.0)
    if any(owner.number("partial_rotary_factor", 1.0) != 1.0 for owner in (config, scaling or config)):
        raise UnsupportedError("config.json: partial_rotary_factor is not supported for this family")
    factors = config.numbers("rope_factors")
    if factors:
        if len(factors) != head_dim // 2:
            raise CheckpointError(f"{len(factors)} rope factors: expected {head_dim // 2}, half of head_dim")
        return Rotary(theta, head_dim, factors)
    if scaling is None:
        return Rotary(theta, head_dim)
    kind = scaling.string("rope_type", scaling.string("type", "default"))
    match kind:
        case "default":
            return Rotary(theta, head_dim)
        case "linear":
            return Rotary(theta, head_dim, (scaling.number("factor"),) * (head_dim // 2))
        case "llama3":
            return Rotary(theta, head_dim, _llama3(scaling, theta, head_dim))
        case _:
            raise UnsupportedError(
                f"config.json: rope type {kind!r:.60} is not supported; known types: {', '.join(KNOWN_TYPES)}"
            )


def _llama3(scaling: Config, theta: float, dim: int) -> tuple[float, ...]:
    """Divisors of the inverse frequencies (Llama 3.1): long waves are stretched, short ones kept, a ramp between."""
    factor = scaling.number("factor")
    low = scaling.number("low_freq_factor")
    high = scaling.number("high_freq_factor")
    original = scaling.integer("original_max_position_embeddings")
    if not high > low:
        raise CheckpointError(f"config.json: rope high_freq_factor {high} must exceed low_freq_factor {low}")
    inverse = theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    waves = 2 * math.pi / inverse
    ramp = np.clip((original / waves - low) / (high - low), 0, 1)
    return tuple(float(value) for value in 1 / ((1 - ramp) / factor + ramp))
