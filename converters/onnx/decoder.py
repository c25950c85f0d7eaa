"""The inference graph of a decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from bitnet_onnx.attention import MAX_HEAD_DIM, AttentionAttributes
from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.converters.onnx._activation import emit_activation
from bitnet_onnx.converters.onnx._emitter import dotted
from bitnet_onnx.converters.onnx._head_layout import HeadLayout, head_size
from bitnet_onnx.converters.onnx._linear_layers import LinearLayers, module_path
from bitnet_onnx.converters.onnx._positions import emit_positions
from bitnet_onnx.converters.onnx._rotary import tables
from bitnet_onnx.converters.onnx.forms.form import CallInputs, LayerInput, OperatorForm, StoredMatrix
from bitnet_onnx.decoder import (
    ATTENTION_INPUTS,
    DecoderSpec,
    MlpActivation,
    NormPlacement,
    QueryKeyNorm,
    Residual,
    Rotary,
)
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.quantized import FloatArray

BATCH, SEQUENCE, TOTAL, PAST = "batch_size", "sequence_length", "total_sequence_length", "past_sequence_length"


class DecoderEmitter:
    """Emits a decoder layer by layer, reading each tensor once.

    Args:
        spec: what the decoder is.
        tensors: its weights by role.
        layers: its linear layers and norms.
        form: the operators that it is written in.
    """

    def __init__(self, spec: DecoderSpec, tensors: Tensors, layers: LinearLayers, form: OperatorForm) -> None:
        self._spec = spec
        self._tensors = tensors
        self._form = form
        self._emit = form.emit
        self._layers = layers
        self._rotary: dict[Rotary, list[ir.Value]] = {}
        self._present: list[Sequence[ir.Value]] = []
        self._head_size = head_size(spec)

    def run(self) -> ir.Value:
        """Emit the whole graph and return what the head reads, before its norm.

        Raises:
            UnsupportedError: there is no attention for heads of this size.
        """
        spec, emit = self._spec, self._emit
        if self._head_size > MAX_HEAD_DIM:
            raise UnsupportedError(
                f"config.json: head_dim is {spec.head_dim}: attention takes heads of at most {MAX_HEAD_DIM} features"
            )
        ids = emit.input("input_ids", ir.DataType.INT64, [BATCH, SEQUENCE])
        mask = emit.input("attention_mask", ir.DataType.INT64, [BATCH, TOTAL])
        cache = self._cache_inputs()
        self._form.read_lengths(CallInputs(ids, mask, cache[0][0]))
        table = self._layers.table("embed_tokens")
        x = self._embed(table, ids, mask)
        for index in range(spec.num_hidden_layers):
            x = self._block(index, x, cache[index])
        head = table if spec.tie_word_embeddings else self._layers.table("lm_head")
        emit.output(self._logits(head, x), "logits", ir.DataType.FLOAT, [BATCH, SEQUENCE, spec.vocab_size])
        for index, present in enumerate(self._present):
            for value, name in zip(present, ("key", "value"), strict=True):
                emit.output(value, f"present.{index}.{name}", ir.DataType.FLOAT, self._cache_shape(TOTAL))
        return x

    def _cache_shape(self, length: str) -> list[int | str]:
        return [BATCH, self._spec.num_key_value_heads, length, self._head_size]

    def _cache_inputs(self) -> list[tuple[ir.Value, ir.Value]]:
        inputs = []
        for index in range(self._spec.num_hidden_layers):
            key, value = (
                self._emit.input(f"past_key_values.{index}.{name}", ir.DataType.FLOAT, self._cache_shape(PAST))
                for name in ("key", "value")
            )
            inputs.append((key, value))
        return inputs

    def _block(self, index: int, x: ir.Value, past: tuple[ir.Value, ir.Value]) -> ir.Value:
        spec, role = self._spec, f"layers.{index}"
        reads_norm = spec.placement in {NormPlacement.INPUT, NormPlacement.BOTH}
        attention_input = self._layers.input(x, f"{role}.input_norm" if reads_norm else None)
        attended = self._attention(index, attention_input, past)
        if spec.residual is Residual.SEQUENTIAL:
            x = self._add(f"{role}.attn", x, attended)
            return self._add(f"{role}.mlp", x, self._mlp(index, self._mlp_input(role, x, reads_norm)))
        mlp_input = attention_input
        if spec.residual is Residual.PARALLEL:
            mlp_input = self._mlp_input(role, x, reads_norm)
        x = self._add(f"{role}.attn", x, attended)
        return self._add(f"{role}.mlp", x, self._mlp(index, mlp_input))

    def _mlp_input(self, role: str, x: ir.Value, reads_norm: bool) -> LayerInput:
        return self._layers.input(x, f"{role}.post_attention_norm" if reads_norm else None)

    def _add(self, branch: str, x: ir.Value, y: ir.Value) -> ir.Value:
        """Add what attention or the MLP computed to the residual stream."""
        spec, emit, path = self._spec, self._emit, module_path(branch)
        if spec.placement in {NormPlacement.OUTPUT, NormPlacement.BOTH}:
            y = self._layers.norm(f"{branch}.output_norm", y)
        if spec.residual_scale != 1:
            y = emit.node(f"{path}/scale/Mul", [y, emit.scalar("residual_scale", spec.residual_scale)])
        x = emit.node(f"{path}/Add", [x, y])
        if spec.placement is NormPlacement.RESIDUAL:
            x = self._layers.norm(f"{branch}.residual_norm", x)
        return x

    def _attention(self, index: int, x: LayerInput, past: tuple[ir.Value, ir.Value]) -> ir.Value:
        spec, role = self._spec, f"layers.{index}.attn"
        path, layer = module_path(role), spec.layer(index)
        roles = [f"{role}.{name}" for name in ATTENTION_INPUTS]
        qkv: Sequence[ir.Value] = self._layers.linears(f"{path}/qkv_proj", roles, x, bias=spec.qkv_bias)
        if spec.query_key_norm is not QueryKeyNorm.NONE:
            qkv = self._normed_queries(role, qkv)
        rotary = layer.rotary
        layout = HeadLayout.of(spec.head_dim, self._head_size, rotary)
        qkv = layout.arrange(self._emit, path, qkv, spec.num_attention_heads, spec.num_key_value_heads)
        scale = spec.attention_scale
        if scale is None and layout.size != spec.head_dim:
            scale = 1 / math.sqrt(spec.head_dim)
        attributes = AttentionAttributes(
            spec.num_attention_heads,
            spec.num_key_value_heads,
            do_rotary=rotary is not None,
            rotary_interleaved=rotary is not None and rotary.interleaved,
            scale=scale,
            local_window_size=layer.window or -1,
            softcap=spec.attention_softcap,
        )
        tables = [] if rotary is None else self._tables(rotary)
        attended = self._form.attention(path, qkv, past, tables, attributes)
        self._present.append(attended[1:])
        y = layout.cut(self._emit, path, attended[0], spec.num_attention_heads)
        given = self._layers.input(y, f"{role}.sub_norm" if spec.attention_sub_norm else None)
        (output,) = self._layers.linears(f"{path}/o_proj", [f"{role}.o_proj"], given, bias=spec.output_bias)
        return output

    def _normed_queries(self, role: str, qkv: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Queries, keys and values as three values, the first two through their norms."""
        spec, emit, path = self._spec, self._emit, module_path(role)
        if len(qkv) == 1:
            sizes = emit.ints(spec.attention_size, spec.key_value_size, spec.key_value_size)
            qkv = emit.nodes(f"{path}/qkv/Split", [qkv[0], sizes], 3, {"axis": -1})
        query, key, value = qkv
        query = self._normed_heads(f"{role}.query_norm", query, spec.num_attention_heads)
        key = self._normed_heads(f"{role}.key_norm", key, spec.num_key_value_heads)
        return [query, key, value]

    def _normed_heads(self, role: str, x: ir.Value, heads: int) -> ir.Value:
        spec, emit, path = self._spec, self._emit, module_path(role)
        if spec.query_key_norm is QueryKeyNorm.ALL:
            return self._layers.norm(role, x)
        x = emit.node(f"{path}/heads/Reshape", [x, emit.ints(0, 0, heads, spec.head_dim)])
        x = self._layers.norm(role, x)
        return emit.node(f"{path}/flat/Reshape", [x, emit.ints(0, 0, heads * spec.head_dim)])

    def _tables(self, rotary: Rotary) -> list[ir.Value]:
        """Cosines and sines, stored once for all layers that rotate alike."""
        if rotary not in self._rotary:
            number = f".{len(self._rotary)}" if self._rotary else ""
            names = (f"model.rotary{number}.{name}_cache" for name in ("cos", "sin"))
            made = tables(rotary, self._spec.context_length)
            self._rotary[rotary] = [self._emit.constant(name, table) for name, table in zip(names, made, strict=True)]
        return self._rotary[rotary]

    def _mlp(self, index: int, x: LayerInput) -> ir.Value:
        spec, emit, role = self._spec, self._emit, f"layers.{index}.mlp"
        path, activation = module_path(role), MlpActivation(spec.activation)
        merged = f"{path}/gate_up_proj" if spec.gated else f"{path}/up_proj"
        roles = [f"{role}.{name}" for name in spec.mlp_inputs]
        parts = self._layers.linears(merged, roles, x, bias=spec.mlp_bias)
        if not spec.gated:
            activated = emit_activation(emit, f"{path}/act", parts[0], activation)
        else:
            activated = self._form.gated(path, parts, activation)
        given = self._layers.input(activated, f"{role}.sub_norm" if spec.mlp_sub_norm else None)
        (down,) = self._layers.linears(f"{path}/down_proj", [f"{role}.down_proj"], given, bias=spec.mlp_bias)
        return down

    def _embed(self, table: StoredMatrix | ir.Value, ids: ir.Value, mask: ir.Value) -> ir.Value:
        spec, emit, path = self._spec, self._emit, "/model/embed_tokens"
        x = table.look_up(path, ids) if isinstance(table, StoredMatrix) else emit.node(f"{path}/Gather", [table, ids])
        if spec.embedding_scale != 1:
            x = emit.node(f"{path}/scale/Mul", [x, emit.scalar("embedding_scale", spec.embedding_scale)])
        if spec.embedding_size:
            (x,) = self._layers.linears("/model/project_in", ["project_in"], LayerInput(self._form, x), bias=False)
        if spec.learned_positions is not None:
            rows = emit.constant("model.embed_positions.weight", self._tensors.read("embed_positions.weight"))
            positions = emit_positions(emit, "/model/embed_positions", rows, spec.learned_positions, ids, mask)
            x = emit.node("/model/embed_positions/Add", [x, positions])
        return x

    def _logits(self, table: StoredMatrix | ir.Value, x: ir.Value) -> ir.Value:
        spec, emit = self._spec, self._emit
        given = self._layers.input(x, "norm" if spec.has_final_norm else None)
        if spec.embedding_size:
            (projected,) = self._layers.linears("/model/project_out", ["project_out"], given, bias=False)
            given = LayerInput(self._form, projected)
        bias = self._tensors.read("lm_head.bias") if spec.head_bias else None
        logits = self._head(table, given, bias)
        if spec.logit_scale != 1:
            logits = emit.node("/lm_head/scale/Mul", [logits, emit.scalar("logit_scale", spec.logit_scale)])
        if spec.logit_softcap:
            cap = emit.scalar("logit_softcap", spec.logit_softcap)
            logits = emit.node("/lm_head/Tanh", [emit.node("/lm_head/Div", [logits, cap])])
            logits = emit.node("/lm_head/softcap/Mul", [logits, cap])
        return logits

    def _head(self, table: StoredMatrix | ir.Value, x: LayerInput, bias: FloatArray | None) -> ir.Value:
        emit, spec = self._emit, self._spec
        if isinstance(table, StoredMatrix):
            return table.linear("/lm_head", x, bias)
        # Gemm reads the table as it is stored, rows first, so that a tied one is stored once.
        value = x.normalized()
        shape = emit.node("/lm_head/Shape", [value], {"end": 2})
        logits_shape = emit.node("/lm_head/Concat", [shape, emit.ints(spec.vocab_size)], {"axis": 0})
        flat = emit.node("/lm_head/flat/Reshape", [value, emit.ints(-1, spec.embedding_width)])
        inputs = [flat, table] if bias is None else [flat, table, emit.constant(dotted("/lm_head", "bias"), bias)]
        return emit.node("/lm_head/Reshape", [emit.node("/lm_head/Gemm", inputs, {"transB": 1}), logits_shape])
