"""The weights of a package of ours against what its manifest says became of the source's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.converters.onnx._linears import quantize
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, PackageError
from bitnet_onnx.evaluation._report import WeightCheck
from bitnet_onnx.evaluation.mil._manifest import Manifest
from bitnet_onnx.evaluation.mil._matrices import PackageMatrices, StoredMatrix, grid_of
from bitnet_onnx.evaluation.mil._stored import steps
from bitnet_onnx.evaluation.mil._types import Array
from bitnet_onnx.metrics import Error
from bitnet_onnx.policy import Precision, Weights
from bitnet_onnx.quantization.method import MethodName
from bitnet_onnx.quantized import QuantizedTensor

#: What these make of a matrix follows from the matrix alone.
_REPRODUCIBLE: Final = {MethodName.AUTO, MethodName.ABSMEAN, MethodName.ROUND}
#: Relative, of the recorded errors, which have six digits behind the point; half precision rounds scales of groups.
_ERROR_TOLERANCE: Final = 1e-3
_ERROR_DIGIT: Final = 1e-6


@dataclass(slots=True)
class _Differences:
    """Elements that are not equal, summed up over parts."""

    count: int = 0
    first: tuple[int, ...] | None = None

    def add(self, wrong: Array, start: int = 0) -> None:
        count = int(np.count_nonzero(wrong))
        if count and self.first is None:
            row, *rest = (int(place) for place in np.unravel_index(int(wrong.argmax()), wrong.shape))
            self.first = (start + row, *rest)
        self.count += count


def check_weights(
    spec: DecoderSpec, source: Tensors, matrices: PackageMatrices, manifest: Manifest, positions: tuple[int, int]
) -> Iterator[WeightCheck]:
    """Compare every tensor, one at a time.

    Codes must be equal. A scale is stored as a number for each row, in single precision, and where there are groups as
    one for each group besides, in half precision: both must be what rounding the source's makes of it.

    Args:
        spec: of both.
        source: what the package was made from.
        matrices: what was made.
        manifest: what the package says of itself.
        positions: the first row of the table of positions that the package has, and how many.

    Raises:
        CheckpointError: the source cannot be read.
    """
    names = dict(spec.matrices())
    for name, shape in spec.tensors():
        role, size = name.removesuffix(".weight"), math.prod(shape)
        precision = manifest.precisions.get(role) if role in names else None
        stored = str(Weights.FLOAT32) if precision is None else str(precision.weights)
        try:
            if precision is None:
                yield _floats(name, role, source, matrices, positions)
            elif precision.weights is Weights.FLOAT32:
                yield _halves(role, source, matrices.matrix(role))
            else:
                yield _codes(role, source, matrices, precision, manifest.errors.get(role))
        except CheckpointError:
            raise
        except PackageError as error:
            yield WeightCheck(role, stored, size, problem=str(error))


def _floats(
    name: str, role: str, source: Tensors, matrices: PackageMatrices, positions: tuple[int, int]
) -> WeightCheck:
    """Norms and biases in single precision; positions in half precision."""
    expected, found = source.read(name), matrices.tensor(name)
    if name == "embed_positions.weight":
        first, count = positions
        with np.errstate(over="ignore"):
            expected = expected[first : first + count].astype(np.float16).astype(np.float32)
    if found.shape != expected.shape:
        problem = f"the package has {list(found.shape)}, the source {list(expected.shape)}"
        return WeightCheck(role, str(Weights.FLOAT32), expected.size, problem=problem)
    differences = _Differences()
    differences.add(_bits(found) != _bits(expected))
    return WeightCheck(role, str(Weights.FLOAT32), expected.size, differences.count, 0, differences.first)


def _halves(role: str, source: Tensors, found: StoredMatrix) -> WeightCheck:
    """A matrix of floats: rounded to half precision after a division by its factor."""
    size, differences = math.prod(found.shape), _Differences()
    if found.steps is not None or found.shape != source.shape(f"{role}.weight"):
        return WeightCheck(role, str(Weights.FLOAT32), size, problem="the package holds codes, or another shape")
    parts = steps(found.shape)
    for start in parts:
        stop = min(start + parts.step, found.shape[0])
        factor = found.factor[start:stop, None] if found.factor.ndim else found.factor
        expected = (source.read_rows(f"{role}.weight", start, stop) / factor).astype(np.float16).astype(np.float32)
        differences.add(_bits(found.stored.rows(start, stop)) != _bits(expected), start)
    return WeightCheck(role, str(Weights.FLOAT32), size, differences.count, 0, differences.first)


def _codes(
    role: str, source: Tensors, matrices: PackageMatrices, precision: Precision, error: float | None
) -> WeightCheck:
    stored, found = str(precision.weights), matrices.matrix(role)
    size = math.prod(found.shape)
    if found.shape != source.shape(f"{role}.weight"):
        return WeightCheck(role, stored, size, problem=f"the package has the shape {list(found.shape)}")
    if found.steps is None:
        return WeightCheck(role, stored, size, problem="the package holds floats")
    if precision.method not in _REPRODUCIBLE:
        return _by_error(role, stored, source, found, error)
    check = None
    kept = source.quantized(role)
    grid = grid_of(precision)
    # Codes of the source stay as they are where the policy keeps them; the manifest does not say which it was.
    if kept is not None and kept.grid == grid:
        check = _compared(role, stored, matrices, found, kept)
    if check is None or not check.holds:
        rounded, _ = quantize(source, role, precision)
        if rounded is not None:
            again = _compared(role, stored, matrices, found, rounded)
            check = again if check is None or again.differing < check.differing else check
    return check or WeightCheck(role, stored, size, problem="the source stays in floats at this precision")


def _compared(
    role: str, stored: str, matrices: PackageMatrices, found: StoredMatrix, expected: QuantizedTensor
) -> WeightCheck:
    rows, columns = found.shape
    codes, scales = _Differences(), _Differences()
    parts = steps(found.shape)
    for start in parts:
        stop = min(start + parts.step, rows)
        part = expected.rows(start, stop)
        codes.add(found.codes(start, stop) != part.signed(), start)
    wanted = expected.with_row_scales().scale.reshape(rows, -1)
    factor = np.broadcast_to(found.factor, (rows,))[:, None]
    if found.unknown_step:
        # The same power of two for all rows; a wrong one is no reason to take all others for wrong.
        ratio = np.where(factor == 0, np.float32(1), wanted / np.where(factor == 0, np.float32(1), factor))
        unit = float(np.sort(ratio, axis=None)[ratio.size // 2])
        matrices.units[role] = unit
        scales.add((ratio != np.float32(unit)) | (math.frexp(unit)[0] != 0.5))
    else:
        steps_found = np.broadcast_to(_steps_of(found), (rows, _steps_of(found).shape[1]))
        if expected.grid.group_size:
            each = columns // steps_found.shape[1]
            group = np.minimum(np.arange(steps_found.shape[1]) * each // expected.grid.group_size, wanted.shape[1] - 1)
            with np.errstate(over="ignore"):
                made = (wanted[:, group] / factor).astype(np.float16).astype(np.float32)
            scales.add(_bits(steps_found) != _bits(made))
        else:
            scales.add(_bits(steps_found[:, :1] * factor) != _bits(wanted))
    first = codes.first if codes.count else scales.first
    return WeightCheck(role, stored, rows * columns, codes.count, scales.count, first)


def _steps_of(found: StoredMatrix) -> Array:
    if found.steps is None:
        raise ValueError("floats have no steps")
    return found.steps


def _by_error(role: str, stored: str, source: Tensors, found: StoredMatrix, recorded: float | None) -> WeightCheck:
    """Whether the weights are as far from the source's as the manifest says: what made them is not known here."""
    error, parts = Error(), steps(found.shape)
    for start in parts:
        stop = min(start + parts.step, found.shape[0])
        error.add(source.read_rows(f"{role}.weight", start, stop), found.rows(start, stop))
    measured, problem = error.relative, ""
    if recorded is None or abs(measured - recorded) > _ERROR_DIGIT + _ERROR_TOLERANCE * recorded:
        problem = f"the relative error is {measured:.6f}, the manifest says {recorded}"
    return WeightCheck(role, stored, math.prod(found.shape), problem=problem, by_error=True)


def _bits(values: Array) -> Array:
    # Zeros of both signs are one value.
    return (np.ascontiguousarray(values, np.float32) + np.float32(0)).view(np.uint32)
