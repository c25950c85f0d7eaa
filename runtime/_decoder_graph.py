"""A decoder graph opened in ONNX Runtime: its options, the check against the manifest, and one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bitnet_onnx.errors import BitnetOnnxError, InputError, OperatorError, PackageError, UnsupportedError
from bitnet_onnx.package_format import LOGITS_START, MODEL_DATA, Operators
from bitnet_onnx.runtime._native_errors import one_line
from bitnet_onnx.runtime.devices import Device, check_operators, open_session
from bitnet_onnx.runtime.kv_scales import KvScales
from bitnet_onnx.runtime.package import PackageInfo

#: Buffers of keys or values, whatever they are held as.
CacheArray: TypeAlias = npt.NDArray[np.float32 | np.int8]
CacheType: TypeAlias = np.dtype[np.float32 | np.int8]

#: ONNX Runtime's severity "error": what it says below is said again by our exceptions or is of no use.
_LOG_SEVERITY = 4
_MAX_THREADS = 1024
#: A graph that computes logits at every position of a chunk gets smaller chunks with a large vocabulary.
_MAX_CHUNK_LOGITS_BYTES = 64 * 2**20
_MIN_CHUNK = 16
_NOTHING = np.ones((1, 1), np.int64)


class DecoderGraph:
    """One opened graph.

    Args:
        package: the checked package.
        device: where it runs; without an operator library the function bodies of the file run.
        threads: threads of one operator; None: as many as there are physical cores.
        prefill_chunk: most tokens of one row that a call is to read.
        activation_bits: 8, 16 or 0 (floats) instead of what the file says.
        kv_scales: keys and values are held as int8 with these scales; None: as float32.

    Attributes:
        path: the file.
        session: for bindings.
        device: where it runs.
        cache_type: of keys and values.
        architecture: the sizes of the manifest.
        restricts_logits: logits can be had of the last positions only.
        chunk: `prefill_chunk`, or less where logits of every position would take too much memory.

    Raises:
        InputError: `threads`, `prefill_chunk` or `activation_bits` is impossible, or the scales are of another model.
        OperatorError: the operator library cannot be loaded, or does not run the package's version of the operators.
        PackageError: ONNX Runtime refuses the graph, or the graph is not what the manifest says.
        UnsupportedError: attention has a form that has no int8 cache, or the operators no bits of activations.
    """

    def __init__(
        self,
        package: PackageInfo,
        device: Device,
        *,
        threads: int | None,
        prefill_chunk: int,
        activation_bits: int | None = None,
        kv_scales: KvScales | None = None,
    ) -> None:
        if threads is not None and not 1 <= threads <= _MAX_THREADS:
            raise InputError(f"threads is {threads}, expected 1 to {_MAX_THREADS}")
        if prefill_chunk < 1:
            raise InputError(f"prefill_chunk is {prefill_chunk}, expected at least 1")
        self.architecture = package.architecture
        self.device = device
        self.path = package.engine_path or package.model_path
        self.restricts_logits = package.engine_path is not None
        fitting = _MAX_CHUNK_LOGITS_BYTES // (4 * self.architecture.vocab_size)
        self.chunk = prefill_chunk if self.restricts_logits else min(prefill_chunk, max(fitting, _MIN_CHUNK))
        self.cache_type: CacheType = np.dtype(np.float32) if kv_scales is None else np.dtype(np.int8)
        if device.operator_library is not None:
            check_operators(device.operator_library, package.operator_version, package.directory)
        options = _session_options(threads)
        source = self._derived(package.operators, options, device, activation_bits, kv_scales)
        try:
            self.session = open_session(source, options, device)
        except OperatorError:
            raise
        except Exception as error:
            raise PackageError(_refusal(self.path, one_line(error))) from None
        self._check_interface()
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = _LOG_SEVERITY
        # What it is anyway; asking for it where it is not set costs 50 us a call.
        self._run_options.add_run_config_entry("gpu_graph_id", "0")
        self._nothing = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, self.architecture.vocab_size), np.float32))

    def run(
        self, binding: ort.IOBinding, tokens: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], first: int
    ) -> npt.NDArray[np.float32]:
        """One call.

        Args:
            binding: has the buffers of keys and values bound.
            tokens: `[batch, S]`.
            mask: `[batch, total]`, ones for the tokens of a row after the call.
            first: the first position of the S whose logits are wanted.

        Returns:
            Logits `[batch, positions, vocab_size]`: from `first` on, or of all S where the graph cannot restrict them.

        Raises:
            BitnetOnnxError: ONNX Runtime failed.
        """
        binding.bind_cpu_input("input_ids", tokens)
        binding.bind_cpu_input("attention_mask", mask)
        if self.restricts_logits:
            binding.bind_cpu_input(LOGITS_START, np.array([first], np.int64))
        else:
            first = 0
        logits = np.empty((tokens.shape[0], tokens.shape[1] - first, self.architecture.vocab_size), np.float32)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        try:
            self.session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise BitnetOnnxError(f"{self.path}: running failed: {one_line(error)}") from None
        finally:
            # A binding that is kept would keep what was bound to it.
            binding.bind_cpu_input("attention_mask", _NOTHING)
            binding.bind_ortvalue_output("logits", self._nothing)
        return logits

    def checked(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """`ids` as an array.

        Raises:
            InputError: no ids, or one that is outside the vocabulary.
        """
        if len(ids) == 0:
            raise InputError("no token ids to read")
        tokens = np.asarray(ids)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise InputError("token ids are not a flat sequence of integers")
        vocab_size = self.architecture.vocab_size
        wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
        if wrong.size:
            raise InputError(f"token id {wrong[0]} is outside the model's vocabulary of {vocab_size}")
        return tokens.astype(np.int64)

    def _derived(
        self,
        operators: Operators,
        options: ort.SessionOptions,
        device: Device,
        activation_bits: int | None,
        kv_scales: KvScales | None,
    ) -> str | bytes:
        """What to open: the file, or a graph made from it in memory."""
        if activation_bits is None and kv_scales is None:
            return str(self.path)
        if activation_bits is not None and operators is not Operators.BITNET:
            raise UnsupportedError(
                f"{self.path}: {operators} operators round activations as ONNX Runtime has it: leave the activations "
                f"as they are, or convert the checkpoint with --operator bitnet"
            )
        # Parsing graphs is for those who change them: importing onnx costs as much as opening a small package.
        from bitnet_onnx.runtime._activation_bits import set_activation_bits
        from bitnet_onnx.runtime._derived_graph import GraphChange, derived_graph
        from bitnet_onnx.runtime._int8_cache_graph import use_int8_cache

        library = device.operator_library is not None
        changes: list[GraphChange] = []
        if activation_bits is not None:
            changes.append(partial(set_activation_bits, bits=activation_bits, library=library))
        if kv_scales is not None:
            kv_scales.check(self.architecture)
            changes.append(partial(use_int8_cache, path=self.path, scales=kv_scales, operators=library))
        return derived_graph(self.path, changes, options)

    def _check_interface(self) -> None:
        """Compares the graph's inputs and outputs with the manifest, so that no later call meets a lie."""
        sizes = self.architecture
        element = f"tensor({'int8' if self.cache_type == np.int8 else 'float'})"
        cache = element, (None, sizes.num_key_value_heads, None, sizes.head_dim)
        inputs: dict[str, tuple[str, tuple[int | None, ...]]] = {
            "input_ids": ("tensor(int64)", (None, None)),
            "attention_mask": ("tensor(int64)", (None, None)),
        }
        if self.restricts_logits:
            inputs[LOGITS_START] = ("tensor(int64)", (1,))
        outputs: dict[str, tuple[str, tuple[int | None, ...]]] = {
            "logits": ("tensor(float)", (None, None, sizes.vocab_size))
        }
        for layer in range(sizes.num_hidden_layers):
            for part in ("key", "value"):
                inputs[f"past_key_values.{layer}.{part}"] = cache
                outputs[f"present.{layer}.{part}"] = cache
        for kind, found, expected in (
            ("input", self.session.get_inputs(), inputs),
            ("output", self.session.get_outputs(), outputs),
        ):
            by_name = {argument.name: argument for argument in found}
            if unexpected := by_name.keys() ^ expected.keys():
                name = min(unexpected)
                state = "missing" if name in expected else "not in the manifest"
                raise PackageError(f"{self.path}: graph {kind} {name} is {state}")
            for name, (element, shape) in expected.items():
                argument = by_name[name]
                if argument.type != element or not _matches(argument.shape, shape):
                    raise PackageError(
                        f"{self.path}: graph {kind} {name} is {argument.type} {argument.shape}, "
                        f"the manifest says {element} {list(shape)}"
                    )


def bind_cache(session: ort.InferenceSession, buffers: Sequence[CacheArray]) -> ort.IOBinding:
    """A binding with buffers of keys and values bound in place.

    Args:
        session: of the decoder.
        buffers: keys and values of layer 0, of layer 1, ...: contiguous `[rows, kv_heads, capacity, head_dim]`.
    """
    binding = session.io_binding()
    for index, buffer in enumerate(buffers):
        layer, part = index // 2, ("key", "value")[index % 2]
        value = ort.OrtValue.ortvalue_from_numpy(buffer)
        binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", value)
        binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
    return binding


def _refusal(path: Path, reason: str) -> str:
    text = f"{path}: ONNX Runtime cannot open it: {reason}"
    if "External initializer" in reason and "out of bounds" in reason:
        text += f"; if {MODEL_DATA} was cut short, copy the package's whole directory again"
    return text


def _matches(found: Sequence[int | str | None], expected: tuple[int | None, ...]) -> bool:
    return len(found) == len(expected) and all(
        size is None or not isinstance(dimension, int) or dimension == size
        for dimension, size in zip(found, expected, strict=True)
    )


def _session_options(threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_SEVERITY
    options.intra_op_num_threads = threads or 0
    # Shapes change from call to call. The arena would keep the largest prefill's memory for ever.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    return options
