"""The weights of a package against what its manifest says became of the source's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters._package_tensors import PackageTensors
from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.converters.onnx._linears import KEPT, quantize
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError, InputError, PackageError
from bitnet_onnx.evaluation._linear import Linear
from bitnet_onnx.evaluation._report import WeightCheck
from bitnet_onnx.metrics import Error
from bitnet_onnx.policy import Precision, Weights
from bitnet_onnx.quantization.method import MethodName
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

_BITS: Final = {Weights.TERNARY: 2, Weights.INT2: 2, Weights.INT4: 4, Weights.INT6: 6, Weights.INT8: 8}
#: What these make of a matrix follows from the matrix alone.
_REPRODUCIBLE: Final = {MethodName.AUTO, MethodName.ABSMEAN, MethodName.ROUND}
#: Relative, of the recorded errors, which have six digits behind the point.
_ERROR_TOLERANCE: Final = 1e-4
_ERROR_DIGIT: Final = 1e-6
Differs = npt.NDArray[np.bool_]

#: Rows of float matrices compared at once.
_CHUNK: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class PackageRule:
    """Applies the matrices that a package holds, as its manifest says.

    Attributes:
        tensors: of the package.
        precisions: by role.
        floats: leave activations as floats whatever the manifest says.
    """

    tensors: PackageTensors
    precisions: Mapping[str, Precision]
    floats: bool = False

    def linear(self, role: str) -> Linear:
        """The matrix out of the package."""
        quantized = self.tensors.quantized(role)
        rounded = quantized is not None and not self.floats
        return Linear(quantized, self.precisions[role].activation_bits if rounded else 0)


def recorded_precisions(manifest: Mapping[str, object], spec: DecoderSpec, path: str) -> dict[str, Precision]:
    """The precision of every matrix as a manifest records it.

    Raises:
        PackageError: `layers` is malformed, or does not list the matrices of the decoder.
    """
    layers = manifest.get("layers")
    found: dict[str, Precision] = {}
    for layer in layers if isinstance(layers, list) else []:
        fields = layer if isinstance(layer, dict) else {}
        role, weights = fields.get("role"), fields.get("weights")
        group, bits = fields.get("group_size"), fields.get("activation_bits")
        if not isinstance(role, str) or weights not in {*map(str, _BITS), str(Weights.FLOAT32)}:
            raise PackageError(f"{path}: a layer has the role {role!r:.60} and the weights {weights!r:.40}")
        if type(group) is not int or type(bits) is not int:
            raise PackageError(f"{path}: {role!r:.60} has group_size {group!r:.20} and activation_bits {bits!r:.20}")
        try:
            # Packages from before methods had names were rounded.
            method = fields.get("method", KEPT)
            named = MethodName.AUTO if method == KEPT else MethodName(str(method))
            found[role] = Precision(Weights(weights), group, bits, method=named)
        except ValueError:
            raise PackageError(f"{path}: {role!r:.60} has the method {method!r:.40}") from None
        except InputError as error:
            raise PackageError(f"{path}: {role!r:.60}: {error}") from error
    expected = {role for role, _ in spec.matrices()}
    if different := sorted(expected ^ set(found)):
        raise PackageError(
            f"{path}: {different[0]!r:.60} is {'not listed' if different[0] in expected else 'no matrix of the source'}"
            f": is this the package of another model?"
        )
    return found


def recorded_layers(manifest: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """What a manifest records of every matrix, by role."""
    layers = manifest.get("layers")
    return {
        str(layer.get("role")): layer
        for layer in (layers if isinstance(layers, list) else [])
        if isinstance(layer, dict)
    }


def recorded_errors(manifest: Mapping[str, object]) -> dict[str, float]:
    """The relative error of every matrix as a manifest records it."""
    return {
        role: float(error)
        for role, layer in recorded_layers(manifest).items()
        if isinstance(error := layer.get("relative_error"), int | float)
    }


def check_weights(
    spec: DecoderSpec,
    source: Tensors,
    package: PackageTensors,
    precisions: Mapping[str, Precision],
    errors: Mapping[str, float],
) -> Iterator[WeightCheck]:
    """Compare every tensor bit for bit, one at a time; what a method made with statistics, by its error.

    Args:
        spec: of both.
        source: what the package was made from.
        package: what was made.
        precisions: as the manifest records them.
        errors: as the manifest records them.

    Raises:
        CheckpointError: the source cannot be read.
    """
    matrices = dict(spec.matrices())
    for name, shape in spec.tensors():
        role = name.removesuffix(".weight")
        size = int(np.prod(shape))
        precision = precisions.get(role) if role in matrices else None
        stored = str(Weights.FLOAT32) if precision is None else str(precision.weights)
        try:
            if precision is not None and precision.weights is not Weights.FLOAT32:
                yield _codes(role, stored, source, package, precision, errors.get(role))
            else:
                yield _floats(name, role, stored, size, source, package)
        except CheckpointError:
            raise
        except PackageError as error:
            yield WeightCheck(role, stored, size, problem=str(error))


def _codes(
    role: str, stored: str, source: Tensors, package: PackageTensors, precision: Precision, error: float | None
) -> WeightCheck:
    found = package.quantized(role)
    size = int(np.prod(source.shape(f"{role}.weight")))
    if found is None:
        return WeightCheck(role, stored, size, problem="the package holds floats")
    bits, group = found.grid.bits, found.grid.group_size
    if (bits, group) != (_BITS[precision.weights], precision.group_size):
        problem = f"the package holds {bits} bits in groups of {group}, the manifest says {precision.group_size}"
        return WeightCheck(role, stored, size, problem=problem)
    if precision.method not in _REPRODUCIBLE:
        return _by_error(role, stored, found, source, error)
    check = None
    # Codes of the source stay as they are where the policy keeps them; the manifest does not say which it was.
    kept = source.quantized(role)
    if kept is not None and (kept.grid.bits, kept.grid.group_size) == (bits, group):
        check = _compared(role, stored, found, kept)
    if check is None or not check.holds:
        rounded, _ = quantize(source, role, precision)
        if rounded is not None:
            again = _compared(role, stored, found, rounded)
            check = again if check is None or again.differing < check.differing else check
    return check or WeightCheck(role, stored, size, problem="the source stays in floats at this precision")


def _by_error(role: str, stored: str, found: QuantizedTensor, source: Tensors, recorded: float | None) -> WeightCheck:
    """Whether the codes are as far from the source as the manifest says: what made them is not known here."""
    error = Error()
    rows, columns = found.shape
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        error.add(source.read_rows(f"{role}.weight", start, stop), found.rows(start, stop).dequantize())
    measured = error.relative
    problem = ""
    if recorded is None or abs(measured - recorded) > _ERROR_DIGIT + _ERROR_TOLERANCE * recorded:
        problem = f"the relative error is {measured:.6f}, the manifest says {recorded}"
    return WeightCheck(role, stored, found.raw.size, problem=problem, by_error=True)


def _compared(role: str, stored: str, found: QuantizedTensor, expected: QuantizedTensor) -> WeightCheck:
    size = found.raw.size
    if found.grid != expected.grid or found.shape != expected.shape:
        return WeightCheck(role, stored, size, size, problem=f"expected {expected.grid}, found {found.grid}")
    codes = found.raw != expected.raw
    scales = _bits_differ(found.with_row_scales().scale, expected.with_row_scales().scale)
    differing, wrong = int(np.count_nonzero(codes)), int(np.count_nonzero(scales))
    first = _first(codes) if differing else _first(scales) if wrong else None
    return WeightCheck(role, stored, size, differing, wrong, first)


def _floats(name: str, role: str, stored: str, size: int, source: Tensors, package: PackageTensors) -> WeightCheck:
    differing, first = 0, None
    rows, *rest = source.shape(name)
    if rest and package.quantized(role) is not None:
        return WeightCheck(role, stored, size, problem="the package holds codes")
    step = max(1, _CHUNK // rest[0]) if rest else rows
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        expected = source.read_rows(name, start, stop) if rest else source.read(name)
        for copy in [package.read_rows(name, start, stop)] if rest else package.copies(name):
            wrong = _bits_differ(copy, expected)
            count = int(np.count_nonzero(wrong))
            if count and first is None:
                row, *column = _first(wrong)
                first = (start + row, *column)
            differing += count
    return WeightCheck(role, stored, size, differing, 0, first)


def _bits_differ(found: FloatArray, expected: FloatArray) -> Differs:
    left, right = (np.ascontiguousarray(part, np.float32).view(np.uint32) for part in (found, expected))
    return np.not_equal(left, right)


def _first(differs: Differs) -> tuple[int, ...]:
    return tuple(int(index) for index in np.unravel_index(int(differs.argmax()), differs.shape))
