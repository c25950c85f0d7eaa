"""The decoder graph opened in ONNX Runtime: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitnet_onnx.runtime._decoder_graph import DecoderGraph
from bitnet_onnx.runtime.devices import Device
from bitnet_onnx.runtime.kv_cache import KVCache
from bitnet_onnx.runtime.kv_scales import KvScales
from bitnet_onnx.runtime.package import PackageInfo

_PREFILL_CHUNK = 256


class DecoderSession:
    """One opened graph; any number of caches, each a sequence of its own, may be stepped through it.

    Args:
        package: the checked package.
        device: where it runs; without an operator library the function bodies of the file run.
        threads: threads of one operator; None: as many as there are physical cores.
        prefill_chunk: most tokens a call of the graph reads, which bounds the memory of long prompts.
        activation_bits: of the linear layers: 8, 16 or 0 (floats) instead of what the file says.
        kv_scales: keys and values are held as int8 with these scales; None: as float32.

    Raises:
        InputError, OperatorError, PackageError, UnsupportedError: as `DecoderGraph`.
    """

    def __init__(
        self,
        package: PackageInfo,
        device: Device,
        *,
        threads: int | None = None,
        prefill_chunk: int = _PREFILL_CHUNK,
        activation_bits: int | None = None,
        kv_scales: KvScales | None = None,
    ) -> None:
        self._graph = DecoderGraph(
            package,
            device,
            threads=threads,
            prefill_chunk=prefill_chunk,
            activation_bits=activation_bits,
            kv_scales=kv_scales,
        )

    def new_cache(self) -> KVCache:
        """An empty cache for one sequence."""
        return KVCache(self._graph.session, self._graph.architecture, self._graph.cache_type, self._graph.device)

    def forward(self, ids: Sequence[int], cache: KVCache) -> npt.NDArray[np.float32]:
        """Reads `ids` behind what the cache holds in one call of the graph.

        Returns:
            The logits of every position, `[len(ids), vocab_size]`.

        Raises:
            InputError: no ids, an id outside the vocabulary, or more than the context holds.
            BitnetOnnxError: ONNX Runtime failed; the cache holds what it held before.
        """
        return self._read(self._graph.checked(ids), cache, 0)

    def step(self, ids: Sequence[int], cache: KVCache) -> npt.NDArray[np.float32]:
        """Reads `ids` in chunks behind what the cache holds.

        Returns:
            The logits `[vocab_size]` of the last position: what comes next.

        Raises:
            InputError, BitnetOnnxError: as `forward`; checked for all ids before any is read.
        """
        tokens = self._graph.checked(ids)
        cache.reserve(cache.length + tokens.size)
        for start in range(0, tokens.size, self._graph.chunk):
            chunk = tokens[start : start + self._graph.chunk]
            logits = self._read(chunk, cache, chunk.size - 1)
        # A view would keep the logits of the whole chunk alive.
        return np.array(logits[-1])

    def _read(self, tokens: npt.NDArray[np.int64], cache: KVCache, first: int) -> npt.NDArray[np.float32]:
        """One call of the graph: logits of the positions from `first` on."""
        total = cache.length + tokens.size
        cache.reserve(total)
        mask = np.ones((1, total), np.int64)
        rows = self._graph.run(cache.binding(), np.ascontiguousarray(tokens[np.newaxis]), mask, first)
        cache.advance(tokens.size)
        logits: npt.NDArray[np.float32] = rows[0]
        return logits
