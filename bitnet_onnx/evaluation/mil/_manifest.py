"""What a package of ours says of itself, in its metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bitnet_onnx.converters.coreml.package import MANIFEST_KEY
from bitnet_onnx.decoder import MANIFEST_SIZES, DecoderSpec
from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.evaluation.mil.program import Program
from bitnet_onnx.json_input import load_object
from bitnet_onnx.policy import Precision, Weights
from bitnet_onnx.quantization.method import MethodName

_FORMAT: Final = 1
_MAX_BYTES: Final = 1 << 22
_KEPT: Final = "kept"
_STORED: Final = {str(name) for name in Weights} - {str(Weights.AUTO), str(Weights.KEEP)}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record that the conversion left.

    Attributes:
        where: what errors call it.
        sizes: of the decoder, as `MANIFEST_SIZES` and `head_dim`.
        context: positions that there is room for.
        storage: of ternary matrices: `lut` or `sparse`.
        precisions: by role.
        errors: of matrices, relative, where they are recorded.
        matrices: shape and bits of a weight, by role, where they are recorded.
        source: format and name of the checkpoint.
        scaled_inputs: inputs of layers that were scaled before matrices were rounded.
        sha256: of the source.
    """

    where: str
    sizes: Mapping[str, object]
    context: int
    storage: str
    precisions: Mapping[str, Precision]
    errors: Mapping[str, float]
    matrices: Mapping[str, tuple[tuple[int, int], float]]
    source: str
    scaled_inputs: int
    sha256: str

    def check(self, spec: DecoderSpec) -> None:
        """Whether a source is the one that the package was made from.

        Raises:
            PackageError: it has other sizes, or other matrices.
        """
        for name in (*MANIFEST_SIZES, "head_dim"):
            if self.sizes.get(name) != getattr(spec, name):
                raise PackageError(
                    f"{self.where}: {name} is {self.sizes.get(name)!r:.40}, that of the source is "
                    f"{getattr(spec, name)}: the package was made from another model"
                )
        expected = {role for role, _ in spec.matrices()}
        if different := sorted(expected ^ set(self.precisions)):
            listed = "no matrix of the source" if different[0] in self.precisions else "not listed"
            raise PackageError(f"{self.where}: {different[0]!r:.60} is {listed}: is this the package of another model?")


def read_manifest(program: Program) -> Manifest | None:
    """The manifest of a package; None where it is not one of ours.

    Raises:
        PackageError: it is broken.
    """
    text = program.metadata.get(MANIFEST_KEY)
    if text is None:
        return None
    where = f"{program.path}: metadata {MANIFEST_KEY}"
    fields = load_object(text.encode(), where, max_bytes=_MAX_BYTES, error=PackageError)
    if fields.get("format") != _FORMAT:
        raise PackageError(f"{where}: format is {fields.get('format')!r:.40}, expected {_FORMAT}")
    sizes, layers, source, context = (fields.get(name) for name in ("sizes", "precisions", "source", "context"))
    if not isinstance(sizes, dict) or not isinstance(layers, dict) or not isinstance(source, dict):
        raise PackageError(f"{where}: sizes, precisions and source must be objects")
    if type(context) is not int or context < 1:
        raise PackageError(f"{where}: context is {context!r:.40}, expected a positive number")
    scaled = fields.get("scaled_inputs", 0)
    if type(scaled) is not int or scaled < 0:
        raise PackageError(f"{where}: scaled_inputs is {scaled!r:.40}")
    precisions, errors, matrices = {}, {}, {}
    for role, layer in layers.items():
        recorded = layer if isinstance(layer, dict) else {}
        precisions[role] = _precision(recorded, f"{where}: {role!r:.60}")
        error = recorded.get("relative_error")
        if isinstance(error, int | float) and math.isfinite(error):
            errors[role] = float(error)
        if (matrix := _matrix(recorded)) is not None:
            matrices[role] = matrix
    return Manifest(
        where=where,
        sizes=sizes,
        context=context,
        storage=str(fields.get("weights")),
        precisions=precisions,
        errors=errors,
        matrices=matrices,
        source=f"{source.get('format')!s:.40}, {source.get('name')!s:.200}",
        scaled_inputs=scaled,
        sha256=str(source.get("sha256")),
    )


def _matrix(fields: Mapping[str, object]) -> tuple[tuple[int, int], float] | None:
    shape, bits = fields.get("shape"), fields.get("bits_per_weight")
    if not isinstance(shape, list) or len(shape) != 2 or not isinstance(bits, int | float) or not math.isfinite(bits):
        return None
    rows, columns = shape
    if type(rows) is not int or type(columns) is not int or min(rows, columns) < 1:
        return None
    return (rows, columns), float(bits)


def _precision(fields: Mapping[str, object], where: str) -> Precision:
    weights, group, bits = (fields.get(name) for name in ("weights", "group_size", "activation_bits"))
    method = fields.get("method", _KEPT)
    if weights not in _STORED or type(group) is not int or type(bits) is not int:
        raise PackageError(
            f"{where} has the weights {weights!r:.40}, group_size {group!r:.20}, activation_bits {bits!r:.20}"
        )
    try:
        named = MethodName.AUTO if method == _KEPT else MethodName(str(method))
        return Precision(Weights(str(weights)), group, bits, method=named)
    except ValueError:
        raise PackageError(f"{where} has the method {method!r:.40}") from None
    except InputError as error:
        raise PackageError(f"{where}: {error}") from error
