"""Packed matrices of random weights."""

from __future__ import annotations

import numpy as np

from bitnet_onnx.bitlinear import PackedLinear
from bitnet_onnx.quantized import Grid, QuantizedTensor


def random_linear(
    rows: int,
    columns: int,
    *,
    bits: int = 2,
    zero_point: int | None = None,
    group_size: int = 0,
    scale: str = "rows",
    activation_bits: int = 8,
    norm: bool = False,
    bias: bool = False,
    epsilon: float = 1e-5,
) -> PackedLinear:
    """Random weights with everything that the operator knows; `scale` is `rows` or `one` without groups."""
    rng = np.random.default_rng(rows * 1009 + columns * 31 + bits)
    grid = Grid(bits, 1 << (bits - 1) if zero_point is None else zero_point, group_size)
    shape = (rows, grid.groups(columns)) if group_size else ((rows,) if scale == "rows" else (1,))
    tensor = QuantizedTensor(
        rng.integers(0, grid.levels, (rows, columns), np.uint8),
        (rng.standard_normal(shape) / 50).astype(np.float32),
        grid,
    )
    return PackedLinear.from_quantized(
        tensor,
        norm_weight=rng.standard_normal(columns).astype(np.float32) if norm else None,
        bias=rng.standard_normal(rows).astype(np.float32) if bias else None,
        activation_bits=activation_bits,
        epsilon=epsilon,
    )
