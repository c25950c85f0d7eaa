"""Whether a package will fit on its disk, told before the work begins."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.converters.onnx._directory import free_bytes
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import PackageError
from bitnet_onnx.packing import packed_shape, padded_rows
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantized import TERNARY, Grid
from bitnet_onnx.ternary import detect

#: Rows that tell whether a matrix is ternary.
_PROBE: Final = 4


def check_space(folder: Path, spec: DecoderSpec, tensors: Tensors, policy: Policy) -> None:
    """Refuse to begin what cannot end.

    Args:
        folder: where the package will be written.
        spec: what it holds.
        tensors: looked into only where the answer depends on them.
        policy: the precision of each matrix.

    Raises:
        PackageError: the matrices take more than what is free.
    """
    free = free_bytes(folder)
    matrices = [(role, shape, policy.precision(role)) for role, shape in spec.matrices()]
    # With room for the most that it can be there is nothing to find out.
    if free > sum(_most_bytes(shape, precision) for _, shape, precision in matrices):
        return
    needed = 0
    for role, shape, precision in matrices:
        needed += _bytes(shape, _grid(tensors, role, precision))
        if needed > free:
            raise PackageError(
                f"{folder.parent}: the package takes more than the {free} bytes that are free there; "
                f"free some space, or choose another output or a smaller precision"
            )


def _grid(tensors: Tensors, role: str, precision: Precision) -> Grid | None:
    """How a matrix will be stored, None for floats; groups are left out where that takes reading to know."""
    if precision.keeps_ternary:
        if precision.weights is Weights.AUTO and tensors.is_master(role):
            return TERNARY
        stored = tensors.quantized(role)
        if stored is not None and precision.keeps(stored.grid):
            return stored.grid
        head = tensors.read_rows(f"{role}.weight", 0, min(_PROBE, tensors.shape(f"{role}.weight")[0]))
        if not head.any() or detect(head) is not None:
            return TERNARY
    return None if precision.of_floats is Weights.FLOAT32 else precision.grid


def _most_bytes(shape: tuple[int, int], precision: Precision) -> int:
    # Eight bits with a scale for each group of 32 are the widest codes.
    rows, columns = shape
    return 4 * rows * columns if precision.of_floats is Weights.FLOAT32 else _bytes(shape, Grid(8, 128, 32))


def _bytes(shape: tuple[int, int], grid: Grid | None) -> int:
    rows, columns = shape
    if grid is None:
        return 4 * rows * columns
    scales = 4 * padded_rows(rows) * grid.groups(columns) if grid.group_size else 0
    return math.prod(packed_shape(rows, columns, grid.bits)) + scales
