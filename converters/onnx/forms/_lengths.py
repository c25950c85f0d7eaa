"""Lengths of the rows of a call, as `GroupQueryAttention` wants them."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from bitnet_onnx.converters.onnx._emitter import Emitter

_PATH: Final = "/model/attention_mask"


def emit_lengths(emit: Emitter, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """`seqlens_k` (tokens of each row, less one) and the total length, both int32."""
    count = emit.node(f"{_PATH}/ReduceSum", [mask, emit.ints(1)], {"keepdims": 0})
    last = emit.node(f"{_PATH}/Sub", [count, emit.ints(1)])
    seqlens = emit.node(f"{_PATH}/seqlens_k/Cast", [last], {"to": int(ir.DataType.INT32)})
    length = emit.node(f"{_PATH}/Shape", [mask], {"start": 1, "end": 2})
    scalar = emit.node(f"{_PATH}/Squeeze", [length, emit.ints(0)])
    total = emit.node(f"{_PATH}/total/Cast", [scalar], {"to": int(ir.DataType.INT32)})
    return seqlens, total
