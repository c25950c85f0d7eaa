"""ONNX Runtime's own operators, and no functions: for programs that load no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.converters.onnx._data_file import Packed
from bitnet_onnx.converters.onnx._emitter import Attributes, Emitter, dotted
from bitnet_onnx.converters.onnx.bodies import MICROSOFT, OPSET
from bitnet_onnx.converters.onnx.forms._codes import Codes, block_scales, block_size, codes, four_bit_codes, pack_rows
from bitnet_onnx.converters.onnx.forms._group_query import GroupQueryForm
from bitnet_onnx.converters.onnx.forms.form import LayerInput, StoredMatrix
from bitnet_onnx.packing import repeated
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

_IR_VERSION: Final = 10
#: Of `MatMulNBits`: activations stay floats, or become int8 with a scale for each block.
_FLOAT_ACTIVATIONS, _INT8_ACTIVATIONS = 1, 4


@dataclass(frozen=True, slots=True)
class _Blocks:
    """A matrix in the layout of `MatMulNBits`.

    Attributes:
        name: of its initializers, such as `model.layers.0.attn.o_proj.weight`.
        weight: uint8 `[N, blocks, bytes]`, or `[N, bytes]` where rows are only looked up.
        scale: float `[N, blocks]`.
        zero_points: uint8 `[N, bytes]`, or None where they are the operator's own.
        bits: of a code.
    """

    name: str
    weight: ir.Value
    scale: ir.Value
    zero_points: ir.Value | None
    bits: int

    def inputs(self, weight: ir.Value) -> list[ir.Value]:
        """The constant inputs of a node, behind its first."""
        return [weight, self.scale, *([] if self.zero_points is None else [self.zero_points])]


@dataclass(frozen=True, slots=True)
class BlockMatrix(StoredMatrix):
    """A matrix of blocks, or the sum of two.

    Attributes:
        emit: where nodes go.
        parts: of the sum.
        rows: N.
        columns: K.
        block: columns of a block.
        accuracy: `accuracy_level` of `MatMulNBits`, or None where rows are only looked up.
    """

    emit: Emitter
    parts: Sequence[_Blocks]
    rows: int
    columns: int
    block: int
    accuracy: int | None

    def linear(self, path: str, x: LayerInput, bias: FloatArray | None) -> ir.Value:
        """A `MatMulNBits` for each part."""
        if self.accuracy is None:
            raise TypeError(f"{path}: rows of this matrix are only looked up")
        value = x.normalized()
        sums = []
        for part, name in zip(self.parts, _paths(path), strict=False):
            attributes: Attributes = {
                "K": self.columns,
                "N": self.rows,
                "bits": part.bits,
                "block_size": self.block,
                "accuracy_level": self.accuracy,
            }
            inputs = [value, *part.inputs(part.weight)]
            y = self.emit.node(f"{name}/MatMulNBits", inputs, attributes, domain=MICROSOFT)
            # As behind attention: onnx knows no types of these operators.
            y.type = ir.TensorType(ir.DataType.FLOAT)
            sums.append(y)
        y = sums[0] if len(sums) == 1 else self.emit.node(f"{path}/parts/Add", sums)
        return y if bias is None else self.emit.node(f"{path}/Add", [y, self.emit.constant(dotted(path, "bias"), bias)])

    def look_up(self, path: str, ids: ir.Value) -> ir.Value:
        """A `GatherBlockQuantized` for each part, on the same bytes."""
        emit, sums = self.emit, []
        blocks = -(-self.columns // self.block)
        for part, name in zip(self.parts, _paths(path), strict=False):
            shape = (self.rows, blocks * self.block * part.bits // 8)
            flat = part.weight
            if self.accuracy is not None:
                flat = emit.alias(f"{part.name}_rows", flat, Packed(ir.DataType.UINT8, shape))
            attributes: Attributes = {
                "bits": part.bits,
                "block_size": self.block,
                "gather_axis": 0,
                "quantize_axis": 1,
            }
            weight, *rest = part.inputs(flat)
            y = emit.node(f"{name}/GatherBlockQuantized", [weight, ids, *rest], attributes, domain=MICROSOFT)
            y.type = ir.TensorType(ir.DataType.FLOAT)
            sums.append(y)
        y = sums[0] if len(sums) == 1 else emit.node(f"{path}/parts/Add", sums)
        if self.columns % self.block:
            y = emit.node(f"{path}/Slice", [y, emit.ints(0), emit.ints(self.columns), emit.ints(-1)])
        return y


class StockForm(GroupQueryForm):
    """Writes `MatMulNBits`, `GatherBlockQuantized` and `GroupQueryAttention` of the domain `com.microsoft`."""

    def matrix(self, path: str, tensor: QuantizedTensor, activation_bits: int | None = 8) -> BlockMatrix:
        """Store blocks. Activations of 8 and of 16 bits become int8 in blocks; those of 0 bits stay floats."""
        floats = activation_bits == 0
        parts = four_bit_codes(tensor) if floats else [codes(tensor)]
        block = block_size(tensor.grid, tensor.shape[1])
        scales = block_scales(tensor, block)
        names = (dotted(path, "weight"), dotted(path, "weight_high"))
        lead = tensor.shape[:1] if activation_bits is None else scales.shape
        blocks = [self._blocks(name, part, scales, block, lead) for name, part in zip(names, parts, strict=False)]
        accuracy = None if activation_bits is None else _FLOAT_ACTIVATIONS if floats else _INT8_ACTIVATIONS
        return BlockMatrix(self.emit, blocks, *tensor.shape, block, accuracy)

    def attention(
        self,
        path: str,
        qkv: Sequence[ir.Value],
        past: tuple[ir.Value, ir.Value],
        tables: Sequence[ir.Value],
        attributes: AttentionAttributes,
    ) -> Sequence[ir.Value]:
        """ONNX Runtime's `GroupQueryAttention`."""
        return self.group_query(path, qkv, past, tables, attributes, domain=MICROSOFT)

    def model(self, producer_version: str) -> ir.Model:
        """The finished model."""
        return self.emit.model(producer_version, {"": OPSET, MICROSOFT: 1}, _IR_VERSION)

    def _blocks(self, name: str, part: Codes, scales: FloatArray, block: int, lead: tuple[int, ...]) -> _Blocks:
        emit, rows = self.emit, len(part.raw)
        packed = pack_rows(part.raw, part.bits, part.zero_point, block)
        weight = emit.constant(name, packed.reshape(*lead, -1))
        factor = np.float32(part.factor)
        scale = emit.constant(f"{name}_scale", scales if factor == 1 else scales * factor)
        zero_points = None
        if not part.centered:
            filled = repeated(part.zero_point, part.bits)
            array = np.full((rows, -(-scales.shape[1] * part.bits // 8)), filled, np.uint8)
            zero_points = emit.constant(f"{name}_zero_points", array)
        return _Blocks(name, weight, scale, zero_points, part.bits)


def _paths(path: str) -> tuple[str, str]:
    """Of the nodes on the parts of a sum."""
    return path, f"{path}/high"
