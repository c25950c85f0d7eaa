"""The inference graph of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.converters.onnx._emitter import Emitter, Matrix, dotted
from bitnet_onnx.converters.onnx._linears import LayerRecord, Tensors, quantize
from bitnet_onnx.converters.onnx._rotary import tables
from bitnet_onnx.decoder import ATTENTION_INPUTS, MLP_INPUTS, DecoderSpec
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.policy import Policy, Precision
from bitnet_onnx.quantized import FloatArray, QuantizedTensor, concatenate

BATCH, SEQUENCE, TOTAL, PAST = "batch_size", "sequence_length", "total_sequence_length", "past_sequence_length"

#: GroupQueryAttention with rotary embedding refuses other sizes, and only when it runs.
HEAD_MULTIPLE = 16


class DecoderEmitter:
    """Emits a decoder layer by layer, reading each tensor once.

    Args:
        spec: what the decoder is.
        tensors: its weights by role.
        policy: the precision of each layer.
        emitter: where nodes and initializers go.
        record: called with what became of each matrix.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        tensors: Tensors,
        policy: Policy,
        emitter: Emitter,
        record: Callable[[LayerRecord], None],
    ) -> None:
        self._spec = spec
        self._tensors = tensors
        self._policy = policy
        self._emit = emitter
        self._record = record

    def run(self) -> ir.Value:
        """Emit the whole graph and return what the head reads, before its norm.

        Raises:
            UnsupportedError: ONNX Runtime has no attention for this size of a head.
        """
        spec, emit = self._spec, self._emit
        if spec.head_dim % HEAD_MULTIPLE:
            raise UnsupportedError(
                f"config.json: head_dim is {spec.head_dim}: "
                f"ONNX Runtime's GroupQueryAttention takes multiples of {HEAD_MULTIPLE}"
            )
        ids = emit.input("input_ids", ir.DataType.INT64, [BATCH, SEQUENCE])
        mask = emit.input("attention_mask", ir.DataType.INT64, [BATCH, TOTAL])
        cache = self._cache_inputs()
        lengths = self._lengths(mask)
        rotary = [emit.constant(f"model.rotary.{name}", table) for name, table in tables(spec)]
        table = self._table("embed_tokens")
        x = self._embed(table, ids)
        for index in range(spec.num_hidden_layers):
            x = self._attention(index, x, cache[index], [*lengths, *rotary])
            x = self._mlp(index, x)
        head = table if spec.tie_word_embeddings else self._table("lm_head")
        emit.output(self._logits(head, x), "logits", ir.DataType.FLOAT, [BATCH, SEQUENCE, spec.vocab_size])
        for index, present in enumerate(self._present):
            for value, name in zip(present, ("key", "value"), strict=True):
                emit.output(value, f"present.{index}.{name}", ir.DataType.FLOAT, self._cache_shape(TOTAL))
        return x

    def _cache_shape(self, length: str) -> list[int | str]:
        return [BATCH, self._spec.num_key_value_heads, length, self._spec.head_dim]

    def _cache_inputs(self) -> list[tuple[ir.Value, ir.Value]]:
        self._present: list[Sequence[ir.Value]] = []
        inputs = []
        for index in range(self._spec.num_hidden_layers):
            key, value = (
                self._emit.input(f"past_key_values.{index}.{name}", ir.DataType.FLOAT, self._cache_shape(PAST))
                for name in ("key", "value")
            )
            inputs.append((key, value))
        return inputs

    def _lengths(self, mask: ir.Value) -> list[ir.Value]:
        """`seqlens_k` (tokens of each row, less one) and the total length, as GroupQueryAttention wants them."""
        emit, path = self._emit, "/model/attention_mask"
        count = emit.node(f"{path}/ReduceSum", [mask, emit.ints(1)], {"keepdims": 0})
        last = emit.node(f"{path}/Sub", [count, emit.ints(1)])
        seqlens = emit.node(f"{path}/seqlens_k/Cast", [last], {"to": int(ir.DataType.INT32)})
        length = emit.node(f"{path}/Shape", [mask], {"start": 1, "end": 2})
        scalar = emit.node(f"{path}/Squeeze", [length, emit.ints(0)])
        total = emit.node(f"{path}/total/Cast", [scalar], {"to": int(ir.DataType.INT32)})
        return [seqlens, total]

    def _attention(self, index: int, x: ir.Value, past: tuple[ir.Value, ir.Value], rest: list[ir.Value]) -> ir.Value:
        spec, emit, layer = self._spec, self._emit, f"/model/layers.{index}"
        roles = [f"layers.{index}.attn.{name}" for name in ATTENTION_INPUTS]
        norm = self._tensors.read(f"layers.{index}.input_norm.weight")
        projected = self._linears(f"{layer}/attn", "qkv_proj", roles, x, f"{layer}/input_norm", norm)
        qkv: list[ir.Value | None] = list(projected)
        attributes = AttentionAttributes(spec.num_attention_heads, spec.num_key_value_heads, do_rotary=True)
        inputs = [*(qkv if len(qkv) == 3 else [qkv[0], None, None]), *past, *rest]
        attended = emit.attention(f"{layer}/attn", inputs, attributes)
        self._present.append(attended[1:])
        sub_norm = self._tensors.read(f"layers.{index}.attn.sub_norm.weight") if spec.attention_sub_norm else None
        (output,) = self._linears(
            f"{layer}/attn", "o_proj", [f"layers.{index}.attn.o_proj"], attended[0], f"{layer}/attn/sub_norm", sub_norm
        )
        return emit.node(f"{layer}/attn/Add", [x, output])

    def _mlp(self, index: int, x: ir.Value) -> ir.Value:
        spec, emit, layer = self._spec, self._emit, f"/model/layers.{index}"
        roles = [f"layers.{index}.mlp.{name}" for name in MLP_INPUTS]
        norm = self._tensors.read(f"layers.{index}.post_attention_norm.weight")
        parts = self._linears(f"{layer}/mlp", "gate_up_proj", roles, x, f"{layer}/post_attention_norm", norm)
        gated = emit.gated(f"{layer}/mlp", parts, spec.activation)
        sub_norm = self._tensors.read(f"layers.{index}.mlp.sub_norm.weight") if spec.mlp_sub_norm else None
        (down,) = self._linears(
            f"{layer}/mlp", "down_proj", [f"layers.{index}.mlp.down_proj"], gated, f"{layer}/mlp/sub_norm", sub_norm
        )
        return emit.node(f"{layer}/mlp/Add", [x, down])

    def _linears(
        self,
        parent: str,
        merged: str,
        roles: list[str],
        x: ir.Value,
        norm_path: str = "",
        norm: FloatArray | None = None,
    ) -> Sequence[ir.Value]:
        """Linear layers on one input: one node under the name `merged` where all share a precision, else one each.

        Args:
            parent: module path of the layers.
            merged: name of the joint node, e.g. `qkv_proj`.
            roles: the layers, in the order of the result.
            x: their input.
            norm_path: module path of the RMSNorm before them.
            norm: its weight, or None where there is no norm.
        """
        matrices = [self._matrix(role) for role in roles]
        biases = [self._bias(role) for role in roles]
        # Layers that share an input all have a bias or none has.
        joint_bias = np.concatenate([bias for bias in biases if bias is not None]) if biases[0] is not None else None
        bits = [self._precision(role).activation_bits for role in roles]
        quantized = [matrix for matrix in matrices if isinstance(matrix, QuantizedTensor)]
        if len(quantized) == len(matrices) and len({matrix.grid for matrix in quantized}) == len(set(bits)) == 1:
            joint = concatenate(quantized) if len(quantized) > 1 else quantized[0]
            return [self._bitlinear(f"{parent}/{merged}", x, joint, bits[0], norm, joint_bias)]
        if not quantized:
            x = self._normalized(norm_path, x, norm)
            weight = np.concatenate([matrix for matrix in matrices if not isinstance(matrix, QuantizedTensor)])
            return [self._float_linear(f"{parent}/{merged}", x, weight, joint_bias)]
        results = []
        normalized: ir.Value | None = None
        for role, matrix, activation_bits, bias in zip(roles, matrices, bits, biases, strict=True):
            path = f"{parent}/{role.rsplit('.', 1)[1]}"
            if isinstance(matrix, QuantizedTensor):
                results.append(self._bitlinear(path, x, matrix, activation_bits, norm, bias))
            else:
                normalized = normalized or self._normalized(norm_path, x, norm)
                results.append(self._float_linear(path, normalized, matrix, bias))
        return results

    def _precision(self, role: str) -> Precision:
        chosen = self._policy.precision(role)
        if role == "embed_tokens" and not self._spec.tie_word_embeddings:
            # Rows that are only looked up meet no activations.
            return replace(chosen, activation_bits=0)
        return chosen

    def _matrix(self, role: str) -> QuantizedTensor | FloatArray:
        quantized, record = quantize(self._tensors, role, self._precision(role))
        self._record(record)
        return self._tensors.read(f"{role}.weight") if quantized is None else quantized

    def _bias(self, role: str) -> FloatArray | None:
        spec = self._spec
        has_bias = spec.attention_bias if ".attn." in role else spec.mlp_bias
        return self._tensors.read(f"{role}.bias") if has_bias else None

    def _normalized(self, path: str, x: ir.Value, norm: FloatArray | None) -> ir.Value:
        return x if norm is None else self._emit.rms_norm(path, x, norm, self._spec.norm_epsilon)

    def _bitlinear(
        self,
        path: str,
        x: ir.Value,
        tensor: QuantizedTensor,
        activation_bits: int,
        norm: FloatArray | None,
        bias: FloatArray | None,
    ) -> ir.Value:
        matrix = self._emit.matrix(path, tensor, activation_bits)
        return self._emit.bitlinear(path, x, matrix, norm=norm, epsilon=self._spec.norm_epsilon, bias=bias)

    def _float_linear(self, path: str, x: ir.Value, weight: FloatArray, bias: FloatArray | None) -> ir.Value:
        y = self._emit.node(f"{path}/MatMul", [x, self._emit.constant(dotted(path, "weight"), weight.T)])
        if bias is None:
            return y
        return self._emit.node(f"{path}/Add", [y, self._emit.constant(dotted(path, "bias"), bias)])

    def _table(self, role: str) -> Matrix | ir.Value:
        """Store the embedding's or the head's matrix."""
        path = f"/{role}" if role == "lm_head" else f"/model/{role}"
        matrix = self._matrix(role)
        if isinstance(matrix, QuantizedTensor):
            return self._emit.matrix(path, matrix, self._precision(role).activation_bits)
        return self._emit.constant(dotted(path, "weight"), matrix)

    def _embed(self, table: Matrix | ir.Value, ids: ir.Value) -> ir.Value:
        path = "/model/embed_tokens"
        if isinstance(table, Matrix):
            return self._emit.bit_embedding(path, ids, table)
        return self._emit.node(f"{path}/Gather", [table, ids])

    def _logits(self, table: Matrix | ir.Value, x: ir.Value) -> ir.Value:
        emit, spec = self._emit, self._spec
        norm = self._tensors.read("norm.weight")
        if isinstance(table, Matrix):
            return emit.bitlinear("/lm_head", x, table, norm=norm, epsilon=spec.norm_epsilon)
        # Gemm reads the table as it is stored, rows first, so that a tied one is stored once.
        x = emit.rms_norm("/model/norm", x, norm, spec.norm_epsilon)
        shape = emit.node("/lm_head/Shape", [x], {"end": 2})
        logits_shape = emit.node("/lm_head/Concat", [shape, emit.ints(spec.vocab_size)], {"axis": 0})
        flat = emit.node("/lm_head/flat/Reshape", [x, emit.ints(-1, spec.hidden_size)])
        logits = emit.node("/lm_head/Gemm", [flat, table], {"transB": 1})
        return emit.node("/lm_head/Reshape", [logits, logits_shape])
