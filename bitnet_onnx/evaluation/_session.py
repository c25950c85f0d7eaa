"""A package in ONNX Runtime, with the hidden states of its layers as further outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from bitnet_onnx.converters.onnx._linear_layers import module_path
from bitnet_onnx.decoder import DecoderSpec, Norm, NormPlacement
from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation._float_graph import leave_activations
from bitnet_onnx.package_format import ENGINE, LOGITS_START, MODEL
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime._native_errors import one_line
from bitnet_onnx.runtime.devices import check_operators, register_library

#: What ONNX Runtime says below is said again by our exceptions.
_LOG_SEVERITY = 4
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


class PackageSession:
    """One graph of a package.

    Args:
        package: the checked package.
        device: with or without the operator library.
        names: values of the graph that are wanted beside the logits.
        engine: the graph of our own runtime instead of `model.onnx`.
        floats: leave activations as they are: nothing is rounded to integers then, and results are reproducible to
            float rounding.
        replaceable: constants of the graph that calls may replace.
        head: leave the head as it is; without it there are no logits, and what it costs is saved.

    Raises:
        OperatorError: the operator library cannot be loaded.
        PackageError: ONNX Runtime refuses the graph.
    """

    def __init__(
        self,
        package: PackageInfo,
        device: Device,
        names: Sequence[str] = (),
        *,
        engine: bool = False,
        floats: bool = False,
        replaceable: Sequence[str] = (),
        head: bool = True,
    ) -> None:
        self._head = head
        self._replaceable = list(replaceable)
        self._path = package.directory / (ENGINE if engine else MODEL)
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_SEVERITY
        if device.operator_library is not None:
            check_operators(device.operator_library, package.operator_version, package.directory)
            register_library(options, device.operator_library)
        # The graph is changed in memory only; its data stays where it is.
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(package.directory.resolve()))
        self._floats = floats
        if floats and device.operator_library is None:
            # Constant folding would hold every matrix as floats at once.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._names = list(names)
        try:
            self._session = ort.InferenceSession(self._graph(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise PackageError(f"{self._path}: ONNX Runtime cannot open it: {one_line(error)}") from None
        self._restricted = any(value.name == LOGITS_START for value in self._session.get_inputs())
        architecture = package.architecture
        # Heads may be padded in the graph: it knows their size.
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._caches = [
            f"past_key_values.{layer}.{part}"
            for layer in range(architecture.num_hidden_layers)
            for part in ("key", "value")
        ]
        self._empty = {}
        for name in self._caches:
            shape = shapes.get(name, [])
            if len(shape) != 4 or shape[1] != architecture.num_key_value_heads or not isinstance(shape[3], int):
                raise PackageError(f"{self._path}: the input {name} has shape {shape}: the manifest says otherwise")
            self._empty[name] = np.zeros((1, shape[1], 0, shape[3]), np.float32)

    def run(
        self, ids: Sequence[int], split: int = 0, constants: Mapping[str, FloatArray] | None = None
    ) -> tuple[FloatArray, list[FloatArray]]:
        """One sequence.

        Args:
            ids: its tokens.
            split: tokens of a first call, before the one whose results are given; 0 reads all in one call.
            constants: values for some of what is replaceable.

        Returns:
            Logits `[T, vocabulary]`, and what was asked for, `[T, width]` each.

        Raises:
            PackageError: ONNX Runtime fails on the graph.
        """
        cache = {**self._empty, **(constants or {})}
        if split:
            first = self._call(np.array(ids[:split], np.int64), 0, cache)
            cache |= dict(zip(self._caches, first[1 : 1 + len(self._caches)], strict=True))
        logits, *rest = self._call(np.array(ids[split:], np.int64), split, cache)
        return logits[0], [value[0] for value in rest[len(self._caches) :]]

    def trace(self, ids: Sequence[int]) -> tuple[list[FloatArray], list[FloatArray]]:
        """One sequence for what happens inside.

        Args:
            ids: its tokens.

        Returns:
            What was asked for, `[T, width]` each; and keys and values `[kv_heads, T, head_dim]` of layer 0,
            of layer 1, ...

        Raises:
            PackageError: ONNX Runtime fails on the graph.
        """
        found = self._call(np.array(ids, np.int64), 0, self._empty)
        count, rest = len(self._caches), found[self._head :]
        return [value[0] for value in rest[count:]], [value[0, :, : len(ids)] for value in rest[:count]]

    def _call(self, ids: npt.NDArray[np.int64], past: int, cache: dict[str, FloatArray]) -> list[FloatArray]:
        feeds = {"input_ids": ids[None], "attention_mask": np.ones((1, past + len(ids)), np.int64), **cache}
        if self._restricted:
            feeds[LOGITS_START] = np.zeros(1, np.int64)
        names = [
            *(["logits"] if self._head else []),
            *(name.replace("past_key_values", "present") for name in self._caches),
            *self._names,
        ]
        run_options = ort.RunOptions()
        run_options.log_severity_level = _LOG_SEVERITY
        try:
            outputs: list[FloatArray] = self._session.run(names, feeds, run_options)
        except Exception as error:
            raise PackageError(f"{self._path}: running failed: {one_line(error)}") from None
        return outputs

    def _graph(self) -> bytes:
        model = load_graph(self._path)
        known = {name for node in model.graph.node for name in node.output}
        for name in self._names:
            if name not in known:
                raise PackageError(f"{self._path}: the graph has no value {name}: convert the checkpoint again")
            if all(output.name != name for output in model.graph.output):
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        if not self._head:
            _drop_head(model.graph)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for name in self._replaceable:
            if name not in constants:
                raise PackageError(f"{self._path}: the graph has no constant {name}: convert the checkpoint again")
            # An initializer that is an input too is a default.
            tensor = constants[name]
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        if self._floats:
            leave_activations(model)
        graph: bytes = model.SerializeToString()
        return graph


def _drop_head(graph: onnx.GraphProto) -> None:
    for node in [node for node in graph.node if node.name.startswith(f"{module_path('lm_head')}/")]:
        graph.node.remove(node)
    for value in [value for value in graph.output if value.name == "logits"]:
        graph.output.remove(value)


def load_graph(path: Path) -> onnx.ModelProto:
    """A graph without its external data.

    Raises:
        PackageError: it is none.
    """
    try:
        return onnx.load_model(str(path), load_external_data=False)
    except Exception as error:
        raise PackageError(f"{path}: not an ONNX graph: {one_line(error)}") from None


def hidden_name(spec: DecoderSpec, layer: int) -> str:
    """The value that leaves a layer, as the emitter calls it."""
    branch = module_path(f"layers.{layer}.mlp")
    if spec.placement is not NormPlacement.RESIDUAL:
        return f"{branch}/Add/output_0"
    last = "LayerNormalization" if spec.norm is Norm.LAYER else "Mul"
    return f"{branch}/residual_norm/{last}/output_0"
