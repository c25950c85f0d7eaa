"""Keys and values of the tokens read so far, in buffers that the graph writes in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnxruntime as ort

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime._decoder_graph import CacheArray, CacheType, bind_cache
from bitnet_onnx.runtime.devices import Device
from bitnet_onnx.runtime.package import Architecture

#: Little, because it is paid before the first token: 0.15 MB a token in a model of two billion weights.
_INITIAL_CAPACITY = 64
_FLOAT32: CacheType = np.dtype(np.float32)
_CPU: Final = Device()


class KVCache:
    """The cache of one sequence: buffers `[1, kv_heads, capacity, head_dim]`, two a layer.

    Each buffer is bound as `past_key_values` and as `present` of a layer, so GroupQueryAttention appends in
    place and nothing is copied. The capacity starts small and grows by half up to the context length; rows at
    and behind `length` are never read.

    Args:
        session: of the decoder.
        architecture: its sizes.
        cache_type: float32, or int8 for a graph with scales.
        device: where the session runs.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        architecture: Architecture,
        cache_type: CacheType = _FLOAT32,
        device: Device = _CPU,
    ) -> None:
        self._session = session
        self._architecture = architecture
        self._type = cache_type
        self._device = device
        self._token_bytes = architecture.cache_bytes_of(cache_type)
        empty = np.empty((1, architecture.num_key_value_heads, 0, architecture.head_dim), cache_type)
        self._buffers: list[CacheArray] = [empty] * (2 * architecture.num_hidden_layers)
        self._binding: ort.IOBinding | None = None
        self._capacity = 0
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens whose keys and values are held."""
        return self._length

    @property
    def capacity(self) -> int:
        """Tokens that fit before the buffers grow."""
        return self._capacity

    @property
    def bytes_used(self) -> int:
        """Size of the buffers."""
        return self._capacity * self._token_bytes

    @property
    def buffers(self) -> Sequence[CacheArray]:
        """Keys and values of layer 0, of layer 1, ...; others after the next growth."""
        return self._buffers

    def reserve(self, length: int) -> None:
        """Makes room for `length` tokens in all.

        Raises:
            InputError: `length` exceeds the context length of the model.
            BitnetOnnxError: the memory cannot be had.
        """
        context = self._architecture.context_length
        if length > context:
            raise InputError(f"{length} tokens do not fit the model's context of {context}")
        if length <= self._capacity:
            return
        capacity = min(context, max(length, self._capacity * 3 // 2, _INITIAL_CAPACITY))
        shape = (1, self._architecture.num_key_value_heads, capacity, self._architecture.head_dim)
        # It holds the old buffers.
        self._binding = None
        try:
            # A layer at a time, so that the old cache and the new one are never there both. An interrupt leaves some
            # layers with more room than the capacity says, which does no harm.
            for first in range(0, len(self._buffers), 2):
                grown = [self._device.zeros(shape, self._type) for _ in range(2)]
                for old, new in zip(self._buffers[first : first + 2], grown, strict=True):
                    new[:, :, : self._length] = old[:, :, : self._length]
                self._buffers[first : first + 2] = grown
        except MemoryError:
            needed = capacity * self._token_bytes
            raise BitnetOnnxError(f"no memory for a KV cache of {capacity} tokens ({needed} bytes)") from None
        self._capacity = capacity

    def binding(self) -> ort.IOBinding:
        """The binding with the buffers bound in place; the caller binds what changes from call to call."""
        if self._binding is None:
            self._binding = bind_cache(self._session, self._buffers)
        return self._binding

    def advance(self, count: int) -> None:
        """Records that the graph has written `count` more tokens."""
        self._length += count

    def truncate(self, length: int) -> None:
        """Forgets every token from position `length` on; the buffers stay.

        Raises:
            InputError: `length` is negative or more than is held.
        """
        if not 0 <= length <= self._length:
            raise InputError(f"cannot truncate a cache of {self._length} tokens to {length}")
        self._length = length

    def reset(self) -> None:
        """Forgets everything; the buffers stay."""
        self._length = 0
