"""BitNet's linear layers as transformers stores them: four codes a byte, and one `weight_scale` a matrix.

A matrix `X.weight` of `[out, in]` lies there as U8 `[out / 4, in]`, its rows in four quarters of `R = out / 4`:
`byte[r, c] = sum over i of (t[r + i R, c] + 1) << 2i`; code 3 means nothing. `autobitlinear` multiplies with
`X.weight_scale` and also takes matrices whose -1, 0 and 1 are floats; `bitlinear` divides by it. The two cannot be
told apart by looking at the numbers. Source: `integrations/bitnet.py` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints._decode import FloatArray, StoredTensor
from bitnet_onnx.converters.ternary_scheme import TernaryScheme
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.json_input import shown
from bitnet_onnx.quantized import TERNARY, ByteArray, QuantizedTensor

#: The stored type of a matrix of this kind in `TensorInfo`.
BITNET: Final = "BITNET"

_CODES_PER_BYTE: Final = 4
_FLOATS: Final = frozenset({"F16", "BF16", "F32"})
#: Matrices of one checkpoint; the largest models have a thousand.
_MAX_MATRICES: Final = 10_000
#: Codes held beside the result while a matrix is unpacked.
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class BitNetMatrix(StoredTensor):
    """A ternary matrix with the value of one step.

    Attributes:
        info: the shape as `[out, in]`, whatever it is in the file.
        scale: the stored `weight_scale`.
        divides: one step is `1 / weight_scale`.
    """

    scale: StoredTensor
    divides: bool

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.info.shape[0] * self.info.shape[1]

    def decode(self, start: int, stop: int) -> FloatArray:
        """Elements `start` to `stop`, row after row, as float32: `t * step`."""
        out = np.empty(stop - start, np.float32)
        if stop > start:
            columns, step = self.info.shape[1], self.step()
            rows = max(1, _CHUNK // columns)
            for first in range(start // columns, -(-stop // columns), rows):
                last = min(first + rows, -(-stop // columns))
                piece = (self._codes(first, last).astype(np.float32) - np.float32(1)).ravel() * step
                begin = first * columns
                out[max(begin - start, 0) : last * columns - start] = piece[max(start - begin, 0) : stop - begin]
        return out

    def quantized(self) -> QuantizedTensor:
        """The matrix without loss.

        Raises:
            CheckpointError: a code 3, a float that is not -1, 0 or 1, or a scale that is not above zero.
        """
        rows, columns = self.info.shape
        raw = np.empty((rows, columns), np.uint8)
        step = max(1, _CHUNK // max(columns, 1))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            np.add(self._codes(first, last), np.uint8(TERNARY.zero_point - 1), out=raw[first:last])
        return QuantizedTensor(raw, np.array([self.step()], np.float32), TERNARY)

    def step(self) -> np.float32:
        """Value of one step, greater than zero."""
        stored = self.scale.decode(0, 1)[0]
        with np.errstate(divide="ignore", over="ignore"):
            step = np.float32(1) / stored if self.divides else stored
        if not (stored > 0 and np.isfinite(step) and step > 0):
            raise CheckpointError(
                f"{self.scale.file.path}: tensor {shown(self.scale.info.name)} is {stored}: "
                f"a weight_scale must be a finite number greater than 0"
            )
        return np.float32(step)

    def _codes(self, start: int, stop: int) -> ByteArray:
        """Rows `start` to `stop` of `t + 1`."""
        if self.type.name == "U8":
            return self._unpacked(start, stop)
        columns = self.info.shape[1]
        values = StoredTensor.decode(self, start * columns, stop * columns).reshape(stop - start, columns)
        wrong = (values != 0) & (np.abs(values) != 1)
        if wrong.any():
            row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            raise self._wrong(start + int(row), int(column), f"{values[row, column]}, expected -1, 0 or 1")
        codes: ByteArray = (values + np.float32(1)).astype(np.uint8)
        return codes

    def _unpacked(self, start: int, stop: int) -> ByteArray:
        columns = self.info.shape[1]
        quarter = self.info.shape[0] // _CODES_PER_BYTE
        out = np.empty((stop - start, columns), np.uint8)
        for index in range(_CODES_PER_BYTE):
            first, last = max(start, index * quarter), min(stop, (index + 1) * quarter)
            if first >= last:
                continue
            target = out[first - start : last - start]
            packed = np.empty(target.size, np.uint8)
            self.file.read_into(self.offset + (first - index * quarter) * columns, packed)
            np.bitwise_and(packed.reshape(target.shape) >> np.uint8(2 * index), np.uint8(3), out=target)
        wrong = out == 3
        if wrong.any():
            row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            raise self._wrong(start + int(row), int(column), "the code 3, which means nothing")
        return out

    def _wrong(self, row: int, column: int, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file.path}: tensor {shown(self.info.name)} holds {what}, at row {row}, column {column}"
        )


@dataclass(frozen=True, slots=True)
class ScaledBias(StoredTensor):
    """A bias that is stored before the matrix's scale is applied to it, as `AutoBitLinear` adds it."""

    matrix: BitNetMatrix

    def decode(self, start: int, stop: int) -> FloatArray:
        """Elements `start` to `stop` as they are added to the scaled product."""
        values: npt.NDArray[np.float32] = StoredTensor.decode(self, start, stop) * self.matrix.step()
        return values


def with_bitnet(stored: Mapping[str, StoredTensor], scheme: TernaryScheme | None) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint with its ternary matrices as such, and without their scales.

    Args:
        stored: as the files have them.
        scheme: what `quantization_config` says.

    Raises:
        CheckpointError: a packed matrix without its scale or a scale without its matrix, one of a wrong shape or type,
            or one that `quantization_config` does not speak of.
    """
    result = dict(stored)
    modules = [name.removesuffix(".weight") for name, tensor in stored.items()
               if name.endswith(".weight") and tensor.type.name == "U8"]  # fmt: skip
    scaled = [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]
    packed = frozenset(modules)
    if max(len(packed), len(scaled)) > _MAX_MATRICES:
        raise _error(
            stored[f"{scaled[0]}.weight_scale" if scaled else f"{modules[0]}.weight"],
            f"is one of {max(len(packed), len(scaled))} packed matrices: the limit is {_MAX_MATRICES}",
        )
    for module in dict.fromkeys([*modules, *scaled]):
        if scheme is None or not scheme.packed:
            name = f"{module}.weight" if module in packed else f"{module}.weight_scale"
            raise _error(stored[name], _unexpected(scheme))
        matrix = _matrix(module, stored, scheme)
        result[f"{module}.weight"] = matrix
        del result[f"{module}.weight_scale"]
        bias = stored.get(f"{module}.bias")
        if bias is not None and not scheme.divides:
            result[bias.info.name] = ScaledBias(bias.info, bias.file, bias.offset, bias.type, matrix)
    return result


def _matrix(module: str, stored: Mapping[str, StoredTensor], scheme: TernaryScheme) -> BitNetMatrix:
    weight, scale = stored.get(f"{module}.weight"), stored.get(f"{module}.weight_scale")
    if weight is None:
        name = stored[f"{module}.weight_scale"]
        raise _error(name, f"is the scale of {shown(f'{module}.weight')}, which is missing")
    if scale is None:
        raise _error(weight, f"is packed, but {shown(f'{module}.weight_scale')} is missing")
    if not scheme.covers(module):
        raise _error(weight, "is ternary, but quantization_config says in modules_to_not_convert that it is not")
    if scale.info.shape not in {(), (1,)} or scale.type.name not in _FLOATS:
        raise _error(scale, f"is {scale.type.name} {list(scale.info.shape)}: expected one float, [1] or []")
    packed = weight.type.name == "U8"
    if not packed and scheme.divides:
        raise _error(weight, f"is {weight.type.name}: linear_class bitlinear stores U8, four codes a byte")
    if not packed and weight.type.name not in _FLOATS:
        raise _error(
            weight, f"is {weight.type.name}: expected packed U8, or -1, 0 and 1 as {', '.join(sorted(_FLOATS))}"
        )
    if len(weight.info.shape) != 2:
        raise _error(weight, f"has shape {list(weight.info.shape)}: a ternary weight is a matrix")
    rows, columns = weight.info.shape
    info = replace(
        weight.info,
        shape=(rows * _CODES_PER_BYTE if packed else rows, columns),
        dtype=BITNET,
        nbytes=weight.info.nbytes + scale.info.nbytes,
    )
    return BitNetMatrix(info, weight.file, weight.offset, weight.type, scale, scheme.divides)


def _unexpected(scheme: TernaryScheme | None) -> str:
    if scheme is None or not scheme.online:
        return (
            "belongs to packed weights, but config.json has no quantization_config that says how they are scaled "
            "(quant_method bitnet, linear_class bitlinear or autobitlinear)"
        )
    return "belongs to packed weights, but quantization_config names masters (quantization_mode online)"


def _error(tensor: StoredTensor, what: str) -> CheckpointError:
    return CheckpointError(f"{tensor.file.path}: tensor {shown(tensor.info.name)} {what}")
