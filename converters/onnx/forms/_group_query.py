"""Attention by one `GroupQueryAttention`, ours or ONNX Runtime's, which have the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx_ir as ir

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.converters.onnx._attention_body import OPERATOR, attention_node_attributes
from bitnet_onnx.converters.onnx._emitter import Emitter
from bitnet_onnx.converters.onnx.forms.form import CallInputs, OperatorForm

_PATH: Final = "/model/attention_mask"


class GroupQueryForm(OperatorForm):
    """A form whose attention is one node."""

    def __init__(self, emit: Emitter) -> None:
        super().__init__(emit)
        self._lengths: Sequence[ir.Value] = ()

    def read_lengths(self, call: CallInputs) -> None:
        """As `GroupQueryAttention` wants them."""
        self._lengths = _emit_lengths(self.emit, call.mask)

    def group_query(
        self,
        path: str,
        qkv: Sequence[ir.Value],
        past: tuple[ir.Value, ir.Value],
        tables: Sequence[ir.Value],
        attributes: AttentionAttributes,
        *,
        domain: str,
        overload: str = "",
    ) -> Sequence[ir.Value]:
        """Add the node; arguments and outputs as of `attention`."""
        inputs = [*(qkv if len(qkv) == 3 else [qkv[0], None, None]), *past, *self._lengths, *tables]
        given = attention_node_attributes(attributes)
        outputs = self.emit.nodes(f"{path}/{OPERATOR}", inputs, 3, given, domain=domain, overload=overload)
        # onnx knows no types behind ONNX Runtime's operators, and its checker wants that of the next layer's input.
        outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return outputs


def _emit_lengths(emit: Emitter, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """`seqlens_k` (tokens of each row, less one) and the total length, both int32."""
    count = emit.node(f"{_PATH}/ReduceSum", [mask, emit.ints(1)], {"keepdims": 0})
    last = emit.node(f"{_PATH}/Sub", [count, emit.ints(1)])
    seqlens = emit.node(f"{_PATH}/seqlens_k/Cast", [last], {"to": int(ir.DataType.INT32)})
    length = emit.node(f"{_PATH}/Shape", [mask], {"start": 1, "end": 2})
    scalar = emit.node(f"{_PATH}/Squeeze", [length, emit.ints(0)])
    total = emit.node(f"{_PATH}/total/Cast", [scalar], {"to": int(ir.DataType.INT32)})
    return seqlens, total
