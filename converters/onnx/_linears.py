"""Linear layers of a checkpoint, quantized as the policy says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from bitnet_onnx.by_rows import MatrixRows
from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.policy import Precision, Weights, weights_of
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import TERNARY, FloatArray, QuantizedTensor

KEPT: Final = "kept"


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What became of one matrix.

    Attributes:
        role: `layers.0.attn.q_proj`.
        shape: `(N, K)`.
        weights: what it was stored as: `ternary`, `int2` (all four values, as a checkpoint had them), `int4`, `int6`,
            `int8` or `float32`.
        group_size: columns that share a scale; 0 for one scale a row or a tensor.
        activation_bits: of the layer's input; 0 where it stays float.
        bits_per_weight: with scales.
        relative_error: of the weights, root of squared error over root of squared weights.
        method: how floats were quantized, or `kept` for codes and ternary values of the source and for floats.
        zero_point: the code that means zero; 0 for floats.
    """

    role: str
    shape: tuple[int, int]
    weights: Weights
    group_size: int
    activation_bits: int
    bits_per_weight: float
    relative_error: float
    method: str = KEPT
    zero_point: int = 0


def quantize(
    tensors: Tensors, role: str, precision: Precision, statistics: InputStatistics | None = None
) -> tuple[QuantizedTensor | None, LayerRecord]:
    """Quantize the matrix `role` and measure the error.

    A matrix that is stored in codes keeps them where the policy says so; masters of ternary weights become ternary.

    Args:
        tensors: of the source.
        role: the layer.
        precision: what the policy says.
        statistics: of the layer's inputs.

    Returns:
        The quantized matrix, or None where the policy keeps float32; and its record.
    """
    rows, columns = tensors.shape(f"{role}.weight")
    if precision.weights is Weights.FLOAT32:
        return None, _float_record(role, (rows, columns))
    # Masters have codes of two bits or none; those that every forward rounds would be rounded for nothing.
    stored = tensors.quantized(role) if precision.keeps(TERNARY) or not tensors.is_master(role) else None
    if stored is not None and precision.keeps(stored.grid):
        return stored, _record(role, stored, precision, 0.0)
    if precision.weights is Weights.AUTO and tensors.is_master(role):
        precision = replace(precision, weights=Weights.TERNARY)

    def read(start: int, stop: int) -> FloatArray:
        return tensors.read_rows(f"{role}.weight", start, stop)

    tensor, error = precision.quantize_rows(MatrixRows((rows, columns), read), statistics)
    if tensor is None:
        return None, _float_record(role, (rows, columns))
    exact = error == 0 and precision.keeps_ternary
    return tensor, _record(role, tensor, precision, error, KEPT if exact else precision.chosen_method(statistics))


def _record(
    role: str, tensor: QuantizedTensor, precision: Precision, relative_error: float, method: str = KEPT
) -> LayerRecord:
    return LayerRecord(
        role,
        tensor.shape,
        weights_of(tensor.grid),
        tensor.grid.group_size,
        precision.activation_bits,
        tensor.bits_per_weight(),
        relative_error,
        str(method),
        tensor.grid.zero_point,
    )


def _float_record(role: str, shape: tuple[int, int]) -> LayerRecord:
    return LayerRecord(role, shape, Weights.FLOAT32, 0, 0, 32.0, 0.0)
