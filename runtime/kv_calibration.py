"""Measuring the scales of int8 keys and values: how large each feature gets in text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.package_format import KV_SCALES
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime._decoder_graph import DecoderGraph, bind_cache
from bitnet_onnx.runtime._int8_cache_graph import Rotation, rotations
from bitnet_onnx.runtime.devices import Device, select_device
from bitnet_onnx.runtime.kv_scales import KvScales
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.tokenizer import TextTokenizer

#: Text that was not measured has larger values, and clipping them costs more than coarser steps. With SmolLM2, keys of
#: other texts are off by 1.1 % at 1, 0.8 % at 1.25 and 1.5, 1.2 % at 2; values by 3.0 % at 1, 1.4 % at 1.5, 1.6 % at 2.
HEADROOM: Final = 1.5
TOKENS: Final = 512
_LARGEST_CODE: Final = 127
#: Texts that the model writes side by side: a step of eight takes little longer than one of a single text.
_ROWS: Final = 8
_CHUNK: Final = 256


def measure_kv_scales(
    package: PackageInfo,
    device: Device,
    *,
    texts: Sequence[Sequence[int]] | None = None,
    tokens: int = TOKENS,
    headroom: float = HEADROOM,
    threads: int | None = None,
    seed: int = 0,
) -> KvScales:
    """Scales from the largest keys and values of some text.

    A step is `headroom` times the largest magnitude of a feature, divided by 127. Keys are cached after rotation, which
    turns the two features of a pair into each other as positions go on, for the slowest pairs after thousands of tokens
    only: both get the larger one's scale. Without that, keys of SmolLM2 behind 2048 tokens are off by 12 %, not 0.9 %.

    Args:
        package: the model.
        device: where it runs.
        texts: token ids to read, each a text of its own; None: the model writes eight texts from its beginning token,
            drawn at temperature 1.
        tokens: most tokens in all.
        headroom: at least 1.
        threads: threads of one operator; None: as many as there are physical cores.
        seed: of the draws.

    Raises:
        InputError: an argument is out of range.
        PackageError: the graph cannot be opened, or is not what the manifest says.
        UnsupportedError: attention has a form that has no int8 cache.
        BitnetOnnxError: ONNX Runtime failed, or keys, values or logits are not finite.
    """
    if tokens < 1:
        raise InputError(f"tokens is {tokens}, expected at least 1")
    if not 1 <= headroom < float("inf"):
        raise InputError(f"headroom is {headroom}, expected a number of at least 1")
    if texts is not None and not texts:
        raise InputError("no text to measure keys and values of")
    graph = DecoderGraph(package, device, threads=threads, prefill_chunk=_CHUNK)
    turns = rotations(graph.path, package.architecture.num_hidden_layers)
    largest = np.zeros(_shape(package), np.float32)
    caches = _written(graph, _beginning(package), tokens, seed) if texts is None else _read(graph, texts, tokens)
    for cache in caches:
        largest = np.maximum(largest, np.stack([np.abs(part).max(axis=(0, 2)) for part in cache]))
    if not np.isfinite(largest).all():
        part, head, feature = np.argwhere(~np.isfinite(largest))[0].tolist()
        name = ("key", "value")[part % 2]
        raise BitnetOnnxError(f"{graph.path}: feature {feature} of {name} head {head}, layer {part // 2} is not finite")
    keys = np.stack([_over_pairs(part, turn) for part, turn in zip(largest[0::2], turns, strict=True)])
    return KvScales(_steps(keys, headroom), _steps(largest[1::2], headroom))


def write_kv_scales(
    path: str | Path,
    *,
    texts: Sequence[Sequence[int]] | None = None,
    tokens: int = TOKENS,
    device: Device | None = None,
    threads: int | None = None,
) -> KvScales:
    """Measures the scales of a package and writes them into it, so that opening it with int8 keys and values is quick.

    Args:
        path: the package directory.
        texts: as in `measure_kv_scales`.
        tokens: most tokens in all.
        device: where the model runs; None: `select_device()`.
        threads: threads of one operator.

    Raises:
        BitnetOnnxError: as `measure_kv_scales`, or the file cannot be written; an older one is then still there.
    """
    package = PackageInfo.open(path)
    device = select_device(package.operators) if device is None else device
    scales = measure_kv_scales(package, device, texts=texts, tokens=tokens, threads=threads)
    scales.save(package.directory / KV_SCALES)
    return scales


def _shape(package: PackageInfo) -> tuple[int, int, int]:
    sizes = package.architecture
    return 2 * sizes.num_hidden_layers, sizes.num_key_value_heads, sizes.head_dim


def _beginning(package: PackageInfo) -> int:
    """The token that texts begin with; some models have one for their end alone."""
    bos = TextTokenizer(package).bos_id
    return bos if bos is not None else package.eos_token_ids[0] if package.eos_token_ids else 0


def _buffers(graph: DecoderGraph, rows: int, length: int) -> list[FloatArray]:
    sizes = graph.architecture
    shape = rows, sizes.num_key_value_heads, length, sizes.head_dim
    return [np.zeros(shape, np.float32) for _ in range(2 * sizes.num_hidden_layers)]


def _read(graph: DecoderGraph, texts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[FloatArray]]:
    """Keys and values of given texts, of at most `tokens` tokens."""
    for text in texts:
        ids = graph.checked(text[: min(tokens, graph.architecture.context_length)])
        buffers = _buffers(graph, 1, ids.size)
        binding = bind_cache(graph.session, buffers)
        for start in range(0, ids.size, graph.chunk):
            chunk = np.ascontiguousarray(ids[np.newaxis, start : start + graph.chunk])
            stop = start + chunk.size
            graph.run(binding, chunk, np.ones((1, stop), np.int64), chunk.size - 1)
        yield buffers
        tokens -= ids.size
        if not tokens:
            return


def _written(graph: DecoderGraph, beginning: int, tokens: int, seed: int) -> Iterator[list[FloatArray]]:
    """Keys and values of texts that the model writes, `tokens` tokens in all."""
    rows = min(_ROWS, tokens)
    length = min(tokens // rows, graph.architecture.context_length)
    buffers = _buffers(graph, rows, length)
    binding = bind_cache(graph.session, buffers)
    random = np.random.default_rng(seed)
    ids = np.full((rows, 1), beginning, np.int64)
    for total in range(1, length + 1):
        logits = graph.run(binding, ids, np.ones((rows, total), np.int64), 0)[:, -1]
        if not np.isfinite(logits.max(axis=1)).all():
            raise BitnetOnnxError(f"{graph.path}: the model gives no usable logits")
        # The largest of logits with Gumbel noise is a draw from their softmax.
        ids = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)[:, np.newaxis]
    yield buffers


def _over_pairs(largest: FloatArray, turn: Rotation) -> FloatArray:
    """The larger of each rotated pair, for both; `[kv_heads, head_dim]`."""
    heads, size = largest.shape
    rotated = min(turn.features, size) // 2 * 2
    shape, axis = ((heads, rotated // 2, 2), 2) if turn.interleaved else ((heads, 2, rotated // 2), 1)
    pairs = largest[:, :rotated].reshape(shape)
    result = largest.copy()
    result[:, :rotated] = np.broadcast_to(pairs.max(axis=axis, keepdims=True), shape).reshape(heads, rotated)
    return result


def _steps(largest: FloatArray, headroom: float) -> npt.NDArray[np.float32]:
    """Scales for magnitudes up to `headroom` times `largest`.

    A feature that was zero throughout is padding, or may be as large as any other of its head.
    """
    of_head = largest.max(axis=2, keepdims=True)
    reach = np.where(largest > 0, largest, np.where(of_head > 0, of_head, np.float32(1)))
    steps = reach.astype(np.float64) * (headroom / _LARGEST_CODE)
    limits = np.finfo(np.float32)
    return np.clip(steps, limits.tiny, limits.max).astype(np.float32)
