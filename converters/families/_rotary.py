"""Rotary embedding out of a configuration, context extension included.

Formulas: `modeling_rope_utils.py` of transformers 5.23.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters._config import Config
from bitnet_onnx.decoder import Rotary
from bitnet_onnx.errors import CheckpointError, UnsupportedError

_log = logging.getLogger(__name__)

KNOWN_TYPES: Final = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_ALIASES: Final = {"su": "longrope", "none": "default"}
#: The runtime's limit too. Tables are made before the weights are looked at: a lie must not fill the memory.
_MAX_HEAD_DIM: Final = 4096


def rotary(
    config: Config,
    head_dim: int,
    *,
    layer_type: str | None = None,
    theta: float | None = None,
    partial: float = 1.0,
    interleaved: bool = False,
) -> Rotary:
    """Read base, rotated part and scaling rule.

    transformers 5 writes one `rope_parameters` object, or one for each layer type; older files have `rope_theta` and
    `rope_scaling`. `rope_factors` is what a GGUF carries instead: one divisor for each inverse frequency.

    Args:
        config: the whole configuration.
        head_dim: features of a head.
        layer_type: whose entry to read where `rope_parameters` has one for each.
        theta: base where the file names none.
        partial: rotated part of a head where the file names none.
        interleaved: pairs are neighbours.

    Raises:
        UnsupportedError: a scaling rule that is not implemented, by name.
        CheckpointError: fields that contradict each other.
    """
    if head_dim > _MAX_HEAD_DIM:
        raise CheckpointError(f"config.json: head_dim is {head_dim}: the limit is {_MAX_HEAD_DIM}")
    scaling = parameters(config, layer_type)
    owner = scaling if "rope_theta" in scaling else config
    base = owner.number("rope_theta", 10000.0 if theta is None else theta)
    owner = scaling if "partial_rotary_factor" in scaling else config
    dim = _dim(head_dim, owner.number("partial_rotary_factor", partial))
    result = Rotary(base, dim, interleaved=interleaved)
    return _scaled(result, config, scaling)


def parameters(config: Config, layer_type: str | None = None) -> Config:
    """The object that holds the scaling rule, perhaps empty; `rope_scaling` goes before `rope_parameters`.

    Raises:
        UnsupportedError: it has one entry for each layer type, and the family does not ask for one of them.
    """
    named = [config.child(name) for name in ("rope_scaling", "rope_parameters")]
    found = next((child for child in named if child is not None and child.fields), Config({}, "config.json: rope"))
    if layer_type is not None and layer_type in found:
        return found.child(layer_type) or found
    for name, value in found.fields.items():
        if layer_type is None and isinstance(value, Mapping):
            raise UnsupportedError(
                f"config.json: {name!r:.60} has rotary parameters of its own: this family has one set for all layers"
            )
    return found


def context_length(config: Config, default: int, layer_type: str | None = None) -> int:
    """Positions that a package has room for where nobody names a number.

    These are those of the configuration, but dynamic scaling goes beyond them by its factor, and `longrope` without a
    wish stays with the short factors, which hold for the original context.
    """
    limit = config.integer("max_position_embeddings", default)
    scaling = parameters(config, layer_type)
    match _kind(scaling):
        case "dynamic":
            return min(int(limit * scaling.number("factor")), 1 << 24)
        case "longrope":
            return min(_original(config, scaling), limit)
        case _:
            return limit


def _dim(head_dim: int, partial: float) -> int:
    if partial > 1:
        raise CheckpointError(f"config.json: partial_rotary_factor is {partial}: expected at most 1")
    dim = int(head_dim * partial)
    if dim < 2 or dim % 2:
        raise CheckpointError(
            f"config.json: {dim} of {head_dim} features of a head are rotated: expected an even number, at least 2"
        )
    return dim


def _kind(scaling: Config) -> str:
    kind = scaling.string("rope_type", scaling.string("type", "default"))
    kind = _ALIASES.get(kind, kind)
    if kind not in KNOWN_TYPES:
        near = difflib.get_close_matches(kind[:60], KNOWN_TYPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnsupportedError(
            f"config.json: rope type {kind!r:.60} is not supported{hint} (known: {', '.join(KNOWN_TYPES)})"
        )
    return kind


def _original(config: Config, scaling: Config) -> int:
    """Positions of the training before the context was extended."""
    name = "original_max_position_embeddings"
    owner = config if name in config else scaling
    return owner.integer(name, config.integer("max_position_embeddings", 2048))


def _scaled(rotary: Rotary, config: Config, scaling: Config) -> Rotary:
    half, kind = rotary.dim // 2, _kind(scaling)
    factors = config.numbers("rope_factors")
    if factors:
        return _with_divisors(rotary, factors, "rope factors")
    match kind:
        case "linear":
            return _with_divisors(rotary, (scaling.number("factor"),) * half, "rope factors")
        case "dynamic":
            limit = config.integer("max_position_embeddings", 2048)
            return Rotary(
                rotary.theta,
                rotary.dim,
                interleaved=rotary.interleaved,
                dynamic_factor=scaling.number("factor"),
                original_context=limit,
            )
        case "llama3":
            original = _original(config, scaling)
            return _with_divisors(rotary, _llama3(scaling, rotary, original), "rope factors")
        case "yarn":
            original = _original(config, scaling)
            factor = scaling.number("factor", config.integer("max_position_embeddings", 2048) / original)
            magnitude = scaling.number("attention_factor", _yarn_magnitude(scaling, factor))
            return _with_divisors(rotary, _yarn(scaling, rotary, factor, original), "rope factors", magnitude)
        case "longrope":
            return _longrope(rotary, config, scaling)
        case _:
            return rotary


def _with_divisors(rotary: Rotary, divisors: tuple[float, ...], what: str, magnitude: float = 1.0) -> Rotary:
    if len(divisors) != rotary.dim // 2:
        raise CheckpointError(
            f"config.json: {len(divisors)} {what}: expected {rotary.dim // 2}, half of the rotated features of a head"
        )
    return Rotary(rotary.theta, rotary.dim, divisors, magnitude, rotary.interleaved)


def _inverse(rotary: Rotary) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64]
    result = rotary.theta ** -(np.arange(0, rotary.dim, 2, dtype=np.float64) / rotary.dim)
    return result


def _llama3(scaling: Config, rotary: Rotary, original: int) -> tuple[float, ...]:
    """Divisors of the inverse frequencies (Llama 3.1): long waves are stretched, short ones kept, a ramp between."""
    factor = scaling.number("factor")
    low = scaling.number("low_freq_factor")
    high = scaling.number("high_freq_factor")
    if not high > low:
        raise CheckpointError(f"config.json: rope high_freq_factor {high} must exceed low_freq_factor {low}")
    waves = 2 * math.pi / _inverse(rotary)
    ramp = np.clip((original / waves - low) / (high - low), 0, 1)
    return tuple(float(value) for value in 1 / ((1 - ramp) / factor + ramp))


def _yarn(scaling: Config, rotary: Rotary, factor: float, original: int) -> tuple[float, ...]:
    """Divisors of YaRN (Peng et al., 2023): pairs that turn often keep their frequency, slow ones are stretched."""
    dim = rotary.dim
    if rotary.theta <= 1:
        raise CheckpointError(f"config.json: rope_theta is {rotary.theta}: yarn needs a base above 1")

    def pair_that_turns(times: float) -> float:
        """The pair, as a fractional index, that turns so many times over the original context."""
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(rotary.theta))

    first = pair_that_turns(scaling.number("beta_fast", 32.0))
    last = pair_that_turns(scaling.number("beta_slow", 1.0))
    if scaling.boolean("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = (last - first) or 0.001
    ramp = np.clip((np.arange(dim // 2) - first) / width, 0, 1)
    return tuple(float(value) for value in 1 / (ramp / factor + (1 - ramp)))


def _yarn_magnitude(scaling: Config, factor: float) -> float:
    """The attention factor of YaRN where the file names none."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    # Zero is as good as absent in the reference.
    if scaling.fields.get("mscale") and scaling.fields.get("mscale_all_dim"):
        return scale(scaling.number("mscale")) / scale(scaling.number("mscale_all_dim"))
    return scale(1.0)


def _longrope(rotary: Rotary, config: Config, scaling: Config) -> Rotary:
    """LongRoPE (Ding et al., 2024): one set of divisors up to the original context, another beyond it.

    The reference changes to the long factors when a sequence grows over the original context, and keys that are in the
    cache by then keep the short ones. A package has one set from the start: that of the context it is made for.
    """
    original = _original(config, scaling)
    limit = config.integer("max_position_embeddings", 2048)
    factor = scaling.number("factor", limit / original)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    wanted = config.integer("context_length", original)
    long = wanted > original
    if not long and limit > original and "context_length" not in config:
        _log.warning(
            "longrope: the package is made for the original context of %d positions; --context %d makes it for the "
            "whole, with the long factors",
            original,
            limit,
        )
    name = "long_factor" if long else "short_factor"
    return _with_divisors(
        rotary, scaling.numbers(name), f"numbers in {name}", scaling.number("attention_factor", magnitude)
    )
