"""Operators of the ONNX standard alone: for programs and tools that know no other domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.converters.onnx._data_file import Packed
from bitnet_onnx.converters.onnx._emitter import Emitter, dotted
from bitnet_onnx.converters.onnx.forms._codes import block_scales, block_size, codes, pack_rows
from bitnet_onnx.converters.onnx.forms._standard_attention import StandardAttention, emit_call_lengths
from bitnet_onnx.converters.onnx.forms.form import CallInputs, LayerInput, OperatorForm, StoredMatrix
from bitnet_onnx.packing import repeated
from bitnet_onnx.quantized import ByteArray, FloatArray, QuantizedTensor

#: Types of two bits came with these.
_TWO_BIT_OPSET, _TWO_BIT_IR = 25, 13
#: `RotaryEmbedding` and `RMSNormalization` came with the one; the other knows types of four bits.
_OPSET, _IR_VERSION = 23, 10

_SIGNED: Final = {2: ir.DataType.INT2, 4: ir.DataType.INT4, 8: ir.DataType.INT8}
_UNSIGNED: Final = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}


@dataclass(frozen=True, slots=True)
class ColumnMatrix(StoredMatrix):
    """A matrix `[K, N]` for `DequantizeLinear` and `MatMul`, which ONNX Runtime makes one node of.

    N is filled up to whole bytes: ONNX Runtime 1.32 computes garbage where it makes one node of a matrix of two bits
    whose rows end within a byte.

    Attributes:
        emit: where nodes go.
        weight: codes `[K, N]`.
        scale: float `[blocks, N]`.
        zero_points: as `scale`, or None where codes are signed.
        bits: of a code.
        zero_point: the unsigned code that means zero.
        signed: codes are those less the zero point, which lies in the middle.
        only_rows: rows are only looked up; the codes are then stored as the bytes that hold them.
        shape: `(N, K)` without what N is filled up with.
        block: columns of a block.
    """

    emit: Emitter
    weight: ir.Value
    scale: ir.Value
    zero_points: ir.Value | None
    bits: int
    zero_point: int
    signed: bool
    only_rows: bool
    shape: tuple[int, int]
    block: int

    def linear(self, path: str, x: LayerInput, bias: FloatArray | None) -> ir.Value:
        """A `MatMul` on floats."""
        emit = self.emit
        inputs = [self.weight, self.scale, *([] if self.zero_points is None else [self.zero_points])]
        weight = emit.node(f"{path}/DequantizeLinear", inputs, {"axis": 0, "block_size": self.block})
        y = emit.node(f"{path}/MatMul", [x.normalized(), weight])
        if self._bytes * 8 // self.bits != self.shape[0]:
            y = emit.node(f"{path}/Slice", [y, emit.ints(0), emit.ints(self.shape[0]), emit.ints(-1)])
        return y if bias is None else emit.node(f"{path}/Add", [y, emit.constant(dotted(path, "bias"), bias)])

    def look_up(self, path: str, ids: ir.Value) -> ir.Value:
        """Columns of the same bytes, whose codes are shifted and scaled: no operator looks up in types below a byte."""
        emit = self.emit
        per_byte, columns = 8 // self.bits, self.shape[1]
        content = self._again(self.weight, Packed(ir.DataType.UINT8, (columns, self._bytes)))
        place = ids if per_byte == 1 else emit.node(f"{path}/Div", [ids, emit.int_scalar(per_byte)])
        found = emit.node(f"{path}/Gather", [content, place], {"axis": 1})
        found = emit.node(f"{path}/Transpose", [found], {"perm": [1, 2, 0]})
        if per_byte > 1:
            which = emit.node(f"{path}/Mod", [ids, emit.int_scalar(per_byte)])
            bit = emit.node(f"{path}/Mul", [which, emit.int_scalar(self.bits)])
            shift = emit.node(f"{path}/shift/Cast", [bit], {"to": int(ir.DataType.UINT8)})
            shift = emit.node(f"{path}/Unsqueeze", [shift, emit.ints(2)])
            found = emit.node(f"{path}/BitShift", [found, shift], {"direction": "RIGHT"})
            found = emit.node(f"{path}/BitwiseAnd", [found, self._byte((1 << self.bits) - 1)])
        if self.signed:
            found = emit.node(f"{path}/BitwiseXor", [found, self._byte(self.zero_point)])
        values = emit.node(f"{path}/Cast", [found], {"to": int(ir.DataType.FLOAT)})
        values = emit.node(f"{path}/Sub", [values, emit.scalar(f"zero_{self.zero_point}", self.zero_point)])
        return emit.node(f"{path}/step/Mul", [values, self._steps(f"{path}/step", ids)])

    @property
    def _bytes(self) -> int:
        return -(-self.shape[0] * self.bits // 8)

    def _byte(self, value: int) -> ir.Value:
        return self.emit.constant(f"constant.byte_{value}", np.array(value, np.uint8))

    def _again(self, value: ir.Value, like: Packed) -> ir.Value:
        """The tensor as a look-up reads it."""
        return value if self.only_rows else self.emit.alias(f"{value.name}_rows", value, like)

    def _steps(self, path: str, ids: ir.Value) -> ir.Value:
        """Scales of the rows that are looked up, `[batch, S, K]`."""
        emit, columns = self.emit, self.shape[1]
        # Scales that another node reads keep ONNX Runtime from making one node of the linear layer.
        like = Packed(ir.DataType.FLOAT, (-(-columns // self.block), self._bytes * 8 // self.bits))
        scale = self._again(self.scale, like)
        found = emit.node(f"{path}/Gather", [scale, ids], {"axis": 1})
        found = emit.node(f"{path}/Transpose", [found], {"perm": [1, 2, 0]})
        found = emit.node(f"{path}/Unsqueeze", [found, emit.ints(3)])
        found = emit.node(f"{path}/Tile", [found, emit.ints(1, 1, 1, self.block)])
        found = emit.node(f"{path}/Reshape", [found, emit.ints(0, 0, -1)])
        if columns % self.block:
            found = emit.node(f"{path}/Slice", [found, emit.ints(0), emit.ints(columns), emit.ints(-1)])
        return found


class StandardForm(OperatorForm):
    """Writes operators of the standard's own domain."""

    def __init__(self, emit: Emitter) -> None:
        super().__init__(emit)
        self._two_bits = False
        self._attention: StandardAttention | None = None

    def matrix(self, path: str, tensor: QuantizedTensor, activation_bits: int | None = 8) -> ColumnMatrix:
        """Store codes and scales. Activations are floats whatever their bits: the standard says no more."""
        emit, part = self.emit, codes(tensor)
        rows, columns = tensor.shape
        whole = -(-rows * part.bits // 8) * 8 // part.bits
        # Signed where zero lies in the middle, which needs no zero points: the highest bit turned over.
        moved, fill = (part.zero_point, 0) if part.centered else (0, part.zero_point)
        packed = pack_rows(part.raw.T ^ np.uint8(moved), part.bits, fill, 8 // part.bits)
        dtype = (_SIGNED if part.centered else _UNSIGNED)[part.bits]
        name, only_rows = dotted(path, "weight"), activation_bits is None
        self._two_bits |= part.bits == 2 and not only_rows
        weight = emit.constant(name, packed) if only_rows else self._codes(name, packed, dtype, (columns, whole))
        block = block_size(tensor.grid, columns)
        scales = _filled(np.ascontiguousarray(block_scales(tensor, block).T), whole)
        zero_points = None
        if not part.centered and not only_rows:
            filled = repeated(part.zero_point, part.bits)
            content = np.full(-(-scales.size * part.bits // 8), filled, np.uint8)
            zero_points = self._codes(f"{name}_zero_points", content, dtype, scales.shape)
        scale = emit.constant(f"{name}_scale", scales)
        return ColumnMatrix(
            emit=emit,
            weight=weight,
            scale=scale,
            zero_points=zero_points,
            bits=part.bits,
            zero_point=part.zero_point,
            signed=part.centered,
            only_rows=only_rows,
            shape=(rows, columns),
            block=block,
        )

    def read_lengths(self, call: CallInputs) -> None:
        """Positions and masks."""
        self._attention = StandardAttention(self.emit, emit_call_lengths(self.emit, call))

    def attention(
        self,
        path: str,
        qkv: Sequence[ir.Value],
        past: tuple[ir.Value, ir.Value],
        tables: Sequence[ir.Value],
        attributes: AttentionAttributes,
    ) -> Sequence[ir.Value]:
        """Products and a softmax, on caches that `ScatterElements` has written."""
        if self._attention is None:
            raise RuntimeError("read_lengths comes before attention")
        return self._attention.attend(path, qkv, past, tables, attributes)

    def rms_norm(self, path: str, x: ir.Value, weight: FloatArray, epsilon: float) -> ir.Value:
        """The operator of that name."""
        inputs = [x, self.emit.constant(dotted(path, "weight"), weight)]
        return self.emit.node(f"{path}/RMSNormalization", inputs, {"axis": -1, "epsilon": float(epsilon)})

    def model(self, producer_version: str) -> ir.Model:
        """The finished model."""
        opset, ir_version = (_TWO_BIT_OPSET, _TWO_BIT_IR) if self._two_bits else (_OPSET, _IR_VERSION)
        return self.emit.model(producer_version, {"": opset}, ir_version)

    def _codes(self, name: str, content: ByteArray, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        if dtype.itemsize < 1:
            return self.emit.constant(name, content, Packed(dtype, shape))
        return self.emit.constant(name, content.view(dtype.numpy()).reshape(shape))


def _filled(scales: FloatArray, rows: int) -> FloatArray:
    """Ones for the rows that are filled up."""
    missing = rows - scales.shape[1]
    return np.pad(scales, ((0, 0), (0, missing)), constant_values=1) if missing else scales
