"""The decoder graph opened in ONNX Runtime: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bitnet_onnx.errors import BitnetOnnxError, InputError, PackageError
from bitnet_onnx.package_format import LOGITS_START
from bitnet_onnx.runtime._native_errors import one_line
from bitnet_onnx.runtime.devices import Device, register_library
from bitnet_onnx.runtime.kv_cache import KVCache
from bitnet_onnx.runtime.package import PackageInfo

#: ONNX Runtime's severity "error": what it says below is said again by our exceptions or is of no use.
_LOG_SEVERITY = 4
_MAX_THREADS = 1024
_PREFILL_CHUNK = 256
#: A graph that computes logits at every position of a chunk gets smaller chunks with a large vocabulary.
_MAX_CHUNK_LOGITS_BYTES = 64 * 2**20
_MIN_CHUNK = 16


class DecoderSession:
    """One opened graph; any number of caches, each a sequence of its own, may be stepped through it.

    Args:
        package: the checked package.
        device: where it runs; without an operator library the function bodies of the file run.
        threads: threads of one operator; None: as many as there are physical cores.
        prefill_chunk: most tokens a call of the graph reads, which bounds the memory of long prompts.

    Raises:
        InputError: `threads` or `prefill_chunk` is out of range.
        OperatorError: the operator library cannot be loaded.
        PackageError: ONNX Runtime refuses the graph, or the graph is not what the manifest says.
    """

    def __init__(
        self,
        package: PackageInfo,
        device: Device,
        *,
        threads: int | None = None,
        prefill_chunk: int = _PREFILL_CHUNK,
    ) -> None:
        if threads is not None and not 1 <= threads <= _MAX_THREADS:
            raise InputError(f"threads is {threads}, expected 1 to {_MAX_THREADS}")
        if prefill_chunk < 1:
            raise InputError(f"prefill_chunk is {prefill_chunk}, expected at least 1")
        self._package = package
        self._architecture = package.architecture
        fitting = _MAX_CHUNK_LOGITS_BYTES // (4 * self._architecture.vocab_size)
        self._chunk = min(prefill_chunk, max(fitting, _MIN_CHUNK))
        options = _session_options(device, threads)
        self._restricts_logits = package.engine_path is not None
        self._graph = package.engine_path or package.model_path
        if self._restricts_logits:
            self._chunk = prefill_chunk
        try:
            self._session = ort.InferenceSession(str(self._graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise PackageError(f"{self._graph}: ONNX Runtime cannot open it: {one_line(error)}") from None
        self._check_interface()
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = _LOG_SEVERITY

    def new_cache(self) -> KVCache:
        """An empty cache for one sequence."""
        return KVCache(self._session, self._architecture)

    def forward(self, ids: Sequence[int], cache: KVCache) -> npt.NDArray[np.float32]:
        """Reads `ids` behind what the cache holds in one call of the graph.

        Returns:
            The logits of every position, `[len(ids), vocab_size]`.

        Raises:
            InputError: no ids, an id outside the vocabulary, or more than the context holds.
            BitnetOnnxError: ONNX Runtime failed; the cache holds what it held before.
        """
        return self._read(self._checked(ids), cache, 0)

    def step(self, ids: Sequence[int], cache: KVCache) -> npt.NDArray[np.float32]:
        """Reads `ids` in chunks behind what the cache holds.

        Returns:
            The logits `[vocab_size]` of the last position: what comes next.

        Raises:
            InputError, BitnetOnnxError: as `forward`; checked for all ids before any is read.
        """
        tokens = self._checked(ids)
        cache.reserve(cache.length + tokens.size)
        for start in range(0, tokens.size, self._chunk):
            chunk = tokens[start : start + self._chunk]
            logits = self._read(chunk, cache, chunk.size - 1 if self._restricts_logits else 0)
        # A view would keep the logits of the whole chunk alive.
        return np.array(logits[-1])

    def _read(self, tokens: npt.NDArray[np.int64], cache: KVCache, first: int) -> npt.NDArray[np.float32]:
        """One call of the graph: logits of the positions from `first` on."""
        total = cache.length + tokens.size
        cache.reserve(total)
        binding = cache.binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(tokens[np.newaxis]))
        binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        if self._restricts_logits:
            binding.bind_cpu_input(LOGITS_START, np.array([first], np.int64))
        logits = np.empty((tokens.size - first, self._architecture.vocab_size), np.float32)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits[np.newaxis]))
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise BitnetOnnxError(f"{self._graph}: running failed: {one_line(error)}") from None
        cache.advance(tokens.size)
        return logits

    def _checked(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        if len(ids) == 0:
            raise InputError("no token ids to read")
        tokens = np.asarray(ids)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise InputError("token ids are not a flat sequence of integers")
        vocab_size = self._architecture.vocab_size
        wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
        if wrong.size:
            raise InputError(f"token id {wrong[0]} is outside the model's vocabulary of {vocab_size}")
        return tokens.astype(np.int64)

    def _check_interface(self) -> None:
        """Compares the graph's inputs and outputs with the manifest, so that no later call meets a lie."""
        sizes = self._architecture
        cache = (None, sizes.num_key_value_heads, None, sizes.head_dim)
        inputs: dict[str, tuple[str, tuple[int | None, ...]]] = {
            "input_ids": ("tensor(int64)", (None, None)),
            "attention_mask": ("tensor(int64)", (None, None)),
        }
        if self._restricts_logits:
            inputs[LOGITS_START] = ("tensor(int64)", (1,))
        outputs: dict[str, tuple[str, tuple[int | None, ...]]] = {
            "logits": ("tensor(float)", (None, None, sizes.vocab_size))
        }
        for layer in range(sizes.num_hidden_layers):
            for part in ("key", "value"):
                inputs[f"past_key_values.{layer}.{part}"] = ("tensor(float)", cache)
                outputs[f"present.{layer}.{part}"] = ("tensor(float)", cache)
        for kind, found, expected in (
            ("input", self._session.get_inputs(), inputs),
            ("output", self._session.get_outputs(), outputs),
        ):
            by_name = {argument.name: argument for argument in found}
            if unexpected := by_name.keys() ^ expected.keys():
                name = min(unexpected)
                state = "missing" if name in expected else "not in the manifest"
                raise PackageError(f"{self._graph}: graph {kind} {name} is {state}")
            for name, (element, shape) in expected.items():
                argument = by_name[name]
                if argument.type != element or not _matches(argument.shape, shape):
                    raise PackageError(
                        f"{self._graph}: graph {kind} {name} is {argument.type} {argument.shape}, "
                        f"the manifest says {element} {list(shape)}"
                    )


def _matches(found: Sequence[int | str | None], expected: tuple[int | None, ...]) -> bool:
    return len(found) == len(expected) and all(
        size is None or not isinstance(dimension, int) or dimension == size
        for dimension, size in zip(found, expected, strict=True)
    )


def _session_options(device: Device, threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_SEVERITY
    options.intra_op_num_threads = threads or 0
    # Shapes change from call to call. The arena would keep the largest prefill's memory for ever.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    if device.operator_library is not None:
        register_library(options, device.operator_library)
    return options
