"""Matrices that can be written as ternary codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.quantized import TERNARY, QuantizedTensor
from bitnet_onnx.ternary import detect, quantize_absmean


def ternary_matrix(tensors: Tensors, role: str) -> QuantizedTensor | None:
    """The codes and scales of a matrix that is ternary: stored so, as {-a, 0, a}, or a master that is rounded to it.

    Args:
        tensors: of the source.
        role: of the matrix, without `.weight`.

    Returns:
        Codes 1, 2, 3 on the grid of `TERNARY`, or None where the matrix is none.
    """
    stored = tensors.quantized(role)
    if stored is not None:
        return _ternary(stored)
    weight = tensors.read(f"{role}.weight")
    exact = detect(weight)
    if exact is None and tensors.is_master(role):
        return quantize_absmean(weight)
    return exact


def _ternary(stored: QuantizedTensor) -> QuantizedTensor | None:
    """A stored matrix on the grid of `TERNARY`, if all of its codes are -1, 0 and 1."""
    zero = stored.grid.zero_point
    if stored.grid.bits != TERNARY.bits:
        return None
    if int(stored.raw.min()) + 1 < zero or int(stored.raw.max()) > zero + 1:
        return None
    grid = replace(stored.grid, zero_point=TERNARY.zero_point)
    raw = stored.raw if zero == TERNARY.zero_point else stored.raw + np.uint8(TERNARY.zero_point - zero)
    return QuantizedTensor(raw, stored.scale, grid)


def single_scale(tensor: QuantizedTensor) -> np.float32 | None:
    """The one scale of a matrix, or None where it has several."""
    scales = tensor.scale.ravel()
    return np.float32(scales[0]) if bool(np.all(scales == scales[0])) else None


def masters_note(tensors: Tensors, roles: list[str]) -> list[str]:
    """What to say where masters were rounded to codes."""
    if any(tensors.is_master(role) for role in roles):
        return ["the masters that training rounds in every step are left out: only what they are rounded to is kept"]
    return []
