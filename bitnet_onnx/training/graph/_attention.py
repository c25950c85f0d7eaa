"""Causal attention in plain operators."""

from __future__ import annotations

import math

import onnx_ir as ir

from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.decoder import ATTENTION_INPUTS, DecoderSpec, QueryKeyNorm
from bitnet_onnx.training.graph._builder import Builder
from bitnet_onnx.training.graph._linears import Linears
from bitnet_onnx.training.graph._norms import Norms
from bitnet_onnx.training.graph._rotary import Rotations
from bitnet_onnx.training.graph._tokens import BATCH, SEQUENCE, Tokens
from bitnet_onnx.training.graph.options import GraphOptions


class Attentions:
    """Emits the attention of each layer.

    Args:
        builder: where the nodes go.
        tokens: that attend to each other.
        spec: what the decoder is.
        options: which layer's states are kept.
        linears: projections.
        norms: of queries and keys.
    """

    def __init__(
        self,
        builder: Builder,
        tokens: Tokens,
        spec: DecoderSpec,
        options: GraphOptions,
        linears: Linears,
        norms: Norms,
    ) -> None:
        self._builder = builder
        self._tokens = tokens
        self._spec = spec
        self._relation_layer = options.relation_layer
        self._linears = linears
        self._norms = norms
        self._rotations = Rotations(builder, tokens, spec.head_dim, options.max_length)
        #: Rotated queries, rotated keys and values of the relation layer, float `[B, T, width]` each.
        self.states: list[ir.Value] = []

    def apply(self, index: int, x: ir.Value) -> ir.Value:
        """What the heads of a layer give, before its output projection.

        Args:
            index: of the layer.
            x: float `[tokens, hidden]`.

        Returns:
            float `[tokens, attention_size]`.
        """
        spec, build, role = self._spec, self._builder, f"layers.{index}.attn"
        path, layer = module_path(role), spec.layer(index)
        query, key, value = self._linears.apply([f"{role}.{name}" for name in ATTENTION_INPUTS], x, index)
        query = self._heads(f"{path}/query", f"{role}.query_norm", query, spec.num_attention_heads)
        key = self._heads(f"{path}/key", f"{role}.key_norm", key, spec.num_key_value_heads)
        value = self._heads(f"{path}/value", None, value, spec.num_key_value_heads)
        scale = 1 / math.sqrt(spec.head_dim) if spec.attention_scale is None else spec.attention_scale
        kept = index == self._relation_layer
        if layer.rotary is not None:
            # Tables that hold the scale save a pass over the queries.
            query = self._rotations.apply(f"{path}/query", query, layer.rotary, 1 if kept else scale)
            key = self._rotations.apply(f"{path}/key", key, layer.rotary, 1)
        if kept:
            self.states = [
                self._flat(f"{path}/state_{number}", part) for number, part in enumerate((query, key, value))
            ]
        if scale != 1 and (kept or layer.rotary is None):
            query = build.node(f"{path}/scale/Mul", [query, build.scalar(scale)])
        attended = self._attend(path, query, key, value, layer.window)
        rows = build.node(f"{path}/tokens/Transpose", [attended], {"perm": [0, 2, 1, 3]})
        return build.reshape(f"{path}/tokens", rows, -1, spec.attention_size)

    def _heads(self, path: str, norm: str | None, x: ir.Value, heads: int) -> ir.Value:
        """`[tokens, heads * D]`, with a norm perhaps, to `[B, heads, T, D]`."""
        spec = self._spec
        kind = spec.query_key_norm if norm is not None else QueryKeyNorm.NONE
        if norm is not None and kind is QueryKeyNorm.ALL:
            x = self._norms.apply(norm, x, heads * spec.head_dim)
        x = self._tokens.reshape(path, x, BATCH, SEQUENCE, heads, spec.head_dim)
        if norm is not None and kind is QueryKeyNorm.HEAD:
            x = self._norms.apply(norm, x, spec.head_dim)
        return self._builder.node(f"{path}/Transpose", [x], {"perm": [0, 2, 1, 3]})

    def _flat(self, path: str, x: ir.Value) -> ir.Value:
        rows = self._builder.node(f"{path}/Transpose", [x], {"perm": [0, 2, 1, 3]})
        return self._tokens.reshape(path, rows, BATCH, SEQUENCE, -1)

    def _attend(self, path: str, query: ir.Value, key: ir.Value, value: ir.Value, window: int) -> ir.Value:
        """Softmax of the scores times values, `[B, heads, T, D]`.

        Queries that share a key head stand one below the other, so that keys and values are not repeated.
        """
        spec, build = self._spec, self._builder
        heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
        if grouped := heads != kv_heads:
            query = build.reshape(f"{path}/grouped", query, 0, kv_heads, -1, spec.head_dim)
        columns = build.node(f"{path}/columns/Transpose", [key], {"perm": [0, 1, 3, 2]})
        scores = build.node(f"{path}/scores/MatMul", [query, columns])
        if spec.attention_softcap:
            cap = build.scalar(spec.attention_softcap)
            share = build.node(f"{path}/softcap/Div", [scores, cap])
            scores = build.node(f"{path}/softcap/Mul", [build.node(f"{path}/Tanh", [share]), cap])
        if grouped:
            scores = self._tokens.reshape(f"{path}/scores", scores, BATCH, heads, SEQUENCE, SEQUENCE)
        masked = build.node(f"{path}/mask/Add", [scores, self._tokens.mask(window)])
        weights = build.node(f"{path}/Softmax", [masked], {"axis": -1})
        if grouped:
            weights = self._tokens.reshape(f"{path}/weights", weights, BATCH, kv_heads, -1, SEQUENCE)
        attended = build.node(f"{path}/attended/MatMul", [weights, value])
        return build.reshape(f"{path}/attended", attended, 0, heads, -1, spec.head_dim) if grouped else attended
