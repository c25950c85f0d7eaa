"""How the reference applies a matrix: as floats, or with integers on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from bitnet_onnx.activations import PEAKS, quantize_activations
from bitnet_onnx.converters.model import SourceModel, Tensors
from bitnet_onnx.converters.onnx._linears import quantize
from bitnet_onnx.policy import HEAD_ROLES, Policy
from bitnet_onnx.quantized import TERNARY, FloatArray, QuantizedTensor
from bitnet_onnx.ternary import detect, quantize_absmean

#: Weights held as floats at once.
_CHUNK: Final = 1 << 22
#: Integers below it are exact in float32.
_EXACT: Final = 1 << 24
#: BitNet's activations; Ma et al., "The Era of 1-bit LLMs", 2024.
_BITNET_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class Linear:
    """One matrix as it is applied.

    Attributes:
        quantized: its codes and scales; None where it is applied as the floats that are stored.
        activation_bits: of its input where it is quantized; 0 for floats.
    """

    quantized: QuantizedTensor | None = None
    activation_bits: int = 0


class LinearRule(Protocol):
    """Decides how each matrix is applied."""

    def linear(self, role: str, /) -> Linear:
        """How the matrix `role` (no `.weight`) is applied."""
        ...


class PolicyRule:
    """What a package of this policy computes, made from the source's weights.

    Args:
        tensors: of the source.
        policy: the precision of each matrix.
    """

    def __init__(self, tensors: Tensors, policy: Policy) -> None:
        self._tensors = tensors
        self._policy = policy

    def linear(self, role: str) -> Linear:
        """The matrix rounded as the policy says."""
        precision = self._policy.precision(role)
        quantized, _ = quantize(self._tensors, role, precision)
        return Linear(quantized, 0 if quantized is None else precision.activation_bits)


class SourceRule:
    """What the source itself computes: floats, and BitNet's arithmetic where it was trained for that.

    Args:
        model: the source.
    """

    def __init__(self, model: SourceModel) -> None:
        self._tensors = model.tensors
        scheme = model.config.get("quantization_config")
        self._bitnet = (
            model.trained_ternary
            or model.spec.family == "bitnet"
            or (isinstance(scheme, dict) and scheme.get("quant_method") == "bitnet")
        )

    def linear(self, role: str) -> Linear:
        """The stored codes, the rounded master, or floats."""
        if role in HEAD_ROLES:
            return Linear()
        if self._tensors.is_master(role):
            weight = self._tensors.read(f"{role}.weight")
            return Linear(detect(weight) or quantize_absmean(weight), _BITNET_BITS)
        stored = self._tensors.quantized(role)
        if stored is None:
            return Linear()
        ternary = stored.grid.bits == TERNARY.bits
        return Linear(stored, _BITNET_BITS if self._bitnet and ternary else 0)


def apply(x: FloatArray, linear: Linear, tensors: Tensors, role: str) -> FloatArray:
    """`x @ weight.T`, a few rows of the weight at a time.

    Args:
        x: float32 `[T, K]`.
        linear: how.
        tensors: where the floats are read from.
        role: of the matrix, no `.weight`.

    Returns:
        float32 `[T, N]`.
    """
    rows, columns = tensors.shape(f"{role}.weight")
    result = np.empty((len(x), rows), np.float32)
    step = max(1, _CHUNK // columns)
    whole = linear.quantized
    tokens = None
    if whole is not None and linear.activation_bits:
        tokens = quantize_activations(x, linear.activation_bits)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        if whole is None:
            weight = tensors.read_rows(f"{role}.weight", part.start, part.stop)
        elif tokens is not None:
            result[:, part] = _integer(*tokens, whole.rows(part.start, part.stop), PEAKS[linear.activation_bits])
            continue
        else:
            weight = whole.rows(part.start, part.stop).dequantize()
        result[:, part] = x @ weight.T
    return result


def look_up(ids: npt.NDArray[np.int64], linear: Linear, tensors: Tensors, role: str) -> FloatArray:
    """Rows of a matrix, float32 `[T, K]`."""
    whole = linear.quantized
    if whole is not None:
        scale = whole.scale if whole.scale.shape == (1,) and not whole.grid.group_size else whole.scale[ids]
        return QuantizedTensor(whole.raw[ids], scale, whole.grid).dequantize()
    unique, inverse = np.unique(ids, return_inverse=True)
    rows = [tensors.read_rows(f"{role}.weight", int(row), int(row) + 1) for row in unique]
    return np.concatenate(rows)[inverse]


def _integer(tokens: npt.NDArray[np.int16], token_scale: FloatArray, matrix: QuantizedTensor, peak: int) -> FloatArray:
    """Exact integer sums, one float32 term for each group, in the order of `docs/operator.md`."""
    weights, columns = matrix.signed(), matrix.shape[1]
    width = matrix.grid.group_size or columns
    magnitude = max(matrix.grid.zero_point, matrix.grid.levels - 1 - matrix.grid.zero_point)
    # BLAS adds in any order, so every partial sum has to be exact.
    single = width * peak * magnitude < _EXACT
    total = np.zeros((len(tokens), len(weights)), np.float32)
    for group, start in enumerate(range(0, columns, width)):
        part = slice(start, start + width)
        sums = _products(tokens[:, part], weights[:, part], single)
        if not matrix.grid.group_size:
            return sums * (matrix.scale[None, :] / token_scale[:, None])
        total += sums * matrix.scale[:, group]
    return total * (np.float32(1) / token_scale)[:, None]


def _products(tokens: npt.NDArray[np.int16], weights: npt.NDArray[np.int16], single: bool) -> FloatArray:
    """`tokens @ weights.T` by way of float32 or float64."""
    if single:
        return tokens.astype(np.float32) @ weights.astype(np.float32).T
    return (tokens.astype(np.float64) @ weights.astype(np.float64).T).astype(np.float32)
