"""Sizes that a configuration gives by others."""

from __future__ import annotations

from bitnet_onnx.errors import CheckpointError


def divided(hidden: int, heads: int) -> int:
    """Features of a head where the heads share the hidden size.

    Raises:
        CheckpointError: they cannot.
    """
    if hidden % heads:
        raise CheckpointError(f"config.json: {heads} attention heads do not divide the hidden size {hidden}")
    return hidden // heads
