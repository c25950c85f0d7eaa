"""Attention over the cached keys and values, which are states of the package."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.converters.coreml._activations import LayerInput
from bitnet_onnx.converters.coreml._graph import Graph, mil_name
from bitnet_onnx.converters.coreml._linears import Linears
from bitnet_onnx.converters.coreml._norms import Norms
from bitnet_onnx.converters.coreml._positions import Positions
from bitnet_onnx.converters.coreml._rotary import Rotaries
from bitnet_onnx.converters.coreml._tools import Value
from bitnet_onnx.decoder import ATTENTION_INPUTS, DecoderSpec, QueryKeyNorm

KEY_CACHE: Final = "keyCache"
VALUE_CACHE: Final = "valueCache"
CACHES: Final = (KEY_CACHE, VALUE_CACHE)


def cache_shape(spec: DecoderSpec) -> tuple[int, ...]:
    """Of the state that holds the keys of all layers, and of that with the values."""
    return spec.num_hidden_layers, 1, spec.num_key_value_heads, spec.context_length, spec.head_dim


@dataclass(slots=True)
class _Cache:
    """A state and what it holds now.

    Attributes:
        state: the state.
        content: after the last update. Each state is read once and every update takes up what the one before it gave:
            two reads of one state look alike to whoever optimizes the program, and must not become one.
    """

    state: Value
    content: Value


class Attentions:
    """Emits the attention of every layer of one function, first to last.

    Args:
        graph: where operations go.
        spec: what the decoder is.
        linears: its linear layers.
        norms: its norms.
        positions: of the tokens.
        states: the keys' and the values'.
    """

    def __init__(
        self,
        graph: Graph,
        spec: DecoderSpec,
        linears: Linears,
        norms: Norms,
        positions: Positions,
        states: tuple[Value, Value],
    ) -> None:
        self._graph = graph
        self._spec = spec
        self._linears = linears
        self._norms = norms
        self._positions = positions
        self._rotaries = Rotaries(graph, positions, spec.context_length)
        self._caches = {
            name: _Cache(state, graph.ops.read_state(input=state, name=f"{name}_read"))
            for name, state in zip(CACHES, states, strict=True)
        }

    def apply(self, index: int, x: LayerInput) -> Value:
        """What attention of a layer makes of its input, float32 `[1, query, attention_size]`."""
        spec, graph, ops, role = self._spec, self._graph, self._graph.ops, f"layers.{index}.attn"
        roles = [f"{role}.{part}" for part in ATTENTION_INPUTS]
        query, key, value = self._linears.apply(roles, x, bias=spec.qkv_bias)
        query = self._heads(f"{role}.query_norm", query, spec.num_attention_heads)
        key = self._heads(f"{role}.key_norm", key, spec.num_key_value_heads)
        value = ops.reshape(x=value, shape=[1, -1, spec.num_key_value_heads, spec.head_dim])
        layer = spec.layer(index)
        if layer.rotary is not None:
            query, key = (self._rotaries.apply(part, layer.rotary, spec.head_dim) for part in (query, key))
        scale = 1 / math.sqrt(spec.head_dim) if spec.attention_scale is None else spec.attention_scale
        # MIL's own attention divides by the root of the head's size, whatever the scale is to be.
        own = 1.0 if spec.attention_softcap else math.sqrt(spec.head_dim)
        plain = spec.attention_scale is None and not spec.attention_softcap
        query = graph.narrow(query if plain else graph.scaled(query, scale * own))
        keys, values = (
            self._update(index, cache, graph.narrow(part)) for cache, part in zip(CACHES, (key, value), strict=True)
        )
        attended = self._attend(query, keys, values, layer.window)
        return graph.wide(attended, f"{mil_name(role)}_attended")

    def _heads(self, role: str, x: Value, heads: int) -> Value:
        """Queries or keys by heads, through their norm, float32 `[1, query, heads, head_dim]`."""
        spec = self._spec
        if spec.query_key_norm is QueryKeyNorm.ALL:
            x = self._norms.apply(role, x)
        x = self._graph.ops.reshape(x=x, shape=[1, -1, heads, spec.head_dim])
        return self._norms.apply(role, x) if spec.query_key_norm is QueryKeyNorm.HEAD else x

    def _update(self, index: int, name: str, new: Value) -> Value:
        """Put keys or values of a layer into their state and return all that it holds of the layer.

        Args:
            index: of the layer.
            name: of the state.
            new: float16 `[1, query, key_value_heads, head_dim]`.

        Returns:
            Float16 `[1, key_value_heads, key, head_dim]`.
        """
        spec, ops, cache, positions = self._spec, self._graph.ops, self._caches[name], self._positions
        first = np.array([index, 0, 0], np.int32)
        last = np.array([index + 1, 1, spec.num_key_value_heads], np.int32)
        end = ops.concat(values=[last, positions.end, np.array([spec.head_dim], np.int32)], axis=0)
        updated = ops.slice_update(
            x=cache.content,
            update=ops.expand_dims(x=ops.transpose(x=new, perm=[0, 2, 1, 3]), axes=[0]),
            begin=ops.concat(values=[first, positions.past, np.zeros(1, np.int32)], axis=0),
            end=end,
        )
        cache.content = ops.coreml_update_state(state=cache.state, value=updated, name=f"layers_{index}_{name}")
        return ops.slice_by_index(
            x=cache.content,
            begin=[index, 0, 0, 0, 0],
            end=end,
            squeeze_mask=[True, False, False, False, False],
        )

    def _attend(self, query: Value, keys: Value, values: Value, window: int) -> Value:
        """Softmax of scores, times values.

        Args:
            query: float16 `[1, query, heads, head_dim]`, scaled.
            keys: float16 `[1, key_value_heads, key, head_dim]`.
            values: as `keys`.
            window: see `Positions.mask`.

        Returns:
            Float16 `[1, query, heads * head_dim]`.
        """
        spec, ops, mask = self._spec, self._graph.ops, self._positions.mask(window)
        shared = spec.num_attention_heads // spec.num_key_value_heads
        if self._positions.single:
            # The heads that share keys stand where tokens would: no key is repeated for them.
            query = ops.reshape(x=query, shape=[1, spec.num_key_value_heads, shared, spec.head_dim])
        else:
            query = ops.transpose(x=query, perm=[0, 2, 1, 3])
            keys, values = (self._repeated(part, shared) for part in (keys, values))
        if spec.attention_softcap:
            attended = self._capped(query, keys, values, mask)
        else:
            attended = ops.scaled_dot_product_attention(query=query, key=keys, value=values, attn_mask=mask)
        if not self._positions.single:
            attended = ops.transpose(x=attended, perm=[0, 2, 1, 3])
        return ops.reshape(x=attended, shape=[1, -1, spec.attention_size])

    def _repeated(self, x: Value, times: int) -> Value:
        """Keys or values for each head of queries, float16 `[1, heads, key, head_dim]`."""
        spec, ops = self._spec, self._graph.ops
        if times == 1:
            return x
        repeated = ops.tile(x=ops.expand_dims(x=x, axes=[2]), reps=[1, 1, times, 1, 1])
        return ops.reshape(x=repeated, shape=[1, spec.num_attention_heads, -1, spec.head_dim])

    def _capped(self, query: Value, keys: Value, values: Value, mask: Value) -> Value:
        """Attention with a soft cap on scores, which MIL's own does not have."""
        graph, ops, cap = self._graph, self._graph.ops, self._spec.attention_softcap
        scores = graph.wide(ops.matmul(x=query, y=keys, transpose_y=True))
        scores = graph.scaled(ops.tanh(x=graph.scaled(scores, 1 / cap)), cap)
        scores = ops.add(x=scores, y=graph.wide(mask))
        weights = graph.narrow(ops.softmax(x=scores, axis=-1))
        return ops.matmul(x=weights, y=values)
