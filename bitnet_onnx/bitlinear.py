"""The numpy reference of `bitnet::BitLinear` and `bitnet::BitEmbedding`, bit for bit as in `docs/operator.md`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitnet_onnx.activations import check_activation_bits, lanes16, quantize_activations, rms_norm
from bitnet_onnx.errors import InputError
from bitnet_onnx.packing import pack, pack_scale, unpack, unpack_scale
from bitnet_onnx.quantized import ByteArray, FloatArray, Grid, QuantizedTensor

_ACCUMULATOR_LIMIT = 1 << 31


@dataclass(frozen=True, slots=True)
class BitLinearAttributes:
    """Attributes of one operator node.

    Attributes:
        in_features: K, columns of the weight.
        out_features: N, rows of the weight.
        grid: bits, zero point and group size.
        activation_bits: 8 or 16 (integers with a scale for each token) or 0 (float activations).
        epsilon: of the fused RMSNorm.
    """

    in_features: int
    out_features: int
    grid: Grid
    activation_bits: int = 8
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.in_features < 1 or self.out_features < 1:
            raise InputError(
                f"in_features is {self.in_features} and out_features is {self.out_features}: both must be >= 1"
            )
        check_activation_bits(self.activation_bits)
        if self.in_features * 128 * (self.grid.levels - 1) >= _ACCUMULATOR_LIMIT:
            raise InputError(
                f"in_features {self.in_features} with {self.grid.bits}-bit weights can overflow a 32-bit sum: "
                f"in_features * 128 * {self.grid.levels - 1} must stay below 2^31"
            )


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """The constant inputs of one node: packed weight, scale, and the optional norm and bias."""

    attributes: BitLinearAttributes
    weight: ByteArray
    scale: FloatArray
    norm_weight: FloatArray | None = None
    bias: FloatArray | None = None

    @classmethod
    def from_quantized(
        cls,
        tensor: QuantizedTensor,
        *,
        norm_weight: FloatArray | None = None,
        bias: FloatArray | None = None,
        activation_bits: int = 8,
        epsilon: float = 1e-5,
    ) -> PackedLinear:
        """Pack a quantized matrix for the operator."""
        rows, columns = tensor.shape
        attributes = BitLinearAttributes(columns, rows, tensor.grid, activation_bits, epsilon)
        scale = pack_scale(tensor.scale, tensor.grid)
        return cls(attributes, pack(tensor.raw, tensor.grid), scale, norm_weight, bias)

    def unpacked(self) -> QuantizedTensor:
        """The matrix that was packed."""
        rows, columns, grid = self.attributes.out_features, self.attributes.in_features, self.attributes.grid
        return QuantizedTensor(unpack(self.weight, rows, columns, grid), unpack_scale(self.scale, rows, grid), grid)


def bitlinear(x: npt.NDArray[np.float32 | np.float16], linear: PackedLinear) -> npt.NDArray[np.float32 | np.float16]:
    """Apply a packed linear layer.

    Args:
        x: float32 or float16 `[..., K]`.
        linear: weights and attributes.

    Returns:
        `[..., N]` in the type of `x`.

    Raises:
        InputError: the last axis of `x` is not `in_features`.
    """
    attributes = linear.attributes
    if x.ndim < 1 or x.shape[-1] != attributes.in_features:
        raise InputError(f"X is {list(x.shape)}: its last axis must be in_features = {attributes.in_features}")
    tokens = x.reshape(-1, attributes.in_features).astype(np.float32)
    if linear.norm_weight is not None:
        tokens = rms_norm(tokens, linear.norm_weight, attributes.epsilon)
    matrix = linear.unpacked()
    result = (
        _integer(tokens, matrix, attributes.activation_bits) if attributes.activation_bits else _float(tokens, matrix)
    )
    if linear.bias is not None:
        result = result + linear.bias
    with np.errstate(over="ignore"):
        return result.astype(x.dtype).reshape(*x.shape[:-1], attributes.out_features)


def _integer(tokens: FloatArray, matrix: QuantizedTensor, activation_bits: int) -> FloatArray:
    quantized, token_scale = quantize_activations(tokens, activation_bits)
    weights, width = matrix.signed(), matrix.grid.group_size
    with np.errstate(over="ignore", invalid="ignore"):
        if not width:
            sums = _dot(quantized, weights)
            return sums * (matrix.scale[None, :] / token_scale[:, None])
        total = np.zeros((len(tokens), len(weights)), np.float32)
        for group in range(matrix.scale.shape[1]):
            part = slice(group * width, (group + 1) * width)
            term = _dot(quantized[:, part], weights[:, part]) * matrix.scale[:, group]
            total = total + term if group else term
        return total * (np.float32(1) / token_scale)[:, None]


def _dot(quantized: npt.NDArray[np.int16], weights: npt.NDArray[np.int16]) -> FloatArray:
    # float64 holds these sums exactly (they stay below 2^39) and is far faster than numpy's integer matmul; by way of
    # an integer because it also knows a negative zero.
    exact = quantized.astype(np.float64) @ weights.astype(np.float64).T
    return exact.astype(np.int64).astype(np.float32)


def _float(tokens: FloatArray, matrix: QuantizedTensor) -> FloatArray:
    weights, columns = matrix.signed().astype(np.float32), tokens.shape[1]
    width = matrix.grid.group_size or columns
    result = np.empty((len(tokens), len(weights)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for index, token in enumerate(tokens):
            for start in range(0, columns, width):
                part = slice(start, start + width)
                sums = lanes16(token[part] * weights[:, part])
                if not matrix.grid.group_size:
                    result[index] = sums * matrix.scale
                    break
                term = sums * matrix.scale[:, start // width]
                result[index] = result[index] + term if start else term
    return result


def bit_embedding(ids: npt.NDArray[np.int64], table: PackedLinear) -> FloatArray:
    """Rows of a packed matrix as floats.

    Args:
        ids: int64 `[...]`, row numbers.
        table: the packed matrix; its norm and bias are not used.

    Returns:
        float32 `[..., K]`.

    Raises:
        InputError: an id is outside `0 .. N-1`.
    """
    rows = table.attributes.out_features
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= rows):
        raise InputError(f"id {int(ids.min())} or {int(ids.max())} is outside 0 .. {rows - 1}")
    return table.unpacked().dequantize()[ids]
