"""Gradients by the ONNX Runtime of this process: the differentiated graph is plain ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.training.autodiff.differentiate import differentiate
from bitnet_onnx.training.autodiff.session import differentiated_session
from bitnet_onnx.training.engines._inputs import GraphInputs, loss_names
from bitnet_onnx.training.engines.engine import Inputs
from bitnet_onnx.training.graph.options import LOSS, gradient_output
from bitnet_onnx.training.graph.pruning import evaluation_graph
from bitnet_onnx.training.graph.stop_gradient import as_identity

if TYPE_CHECKING:
    from bitnet_onnx.training.graph.decoder import TrainingGraph
    from bitnet_onnx.training.parameters import ParameterStore
    from bitnet_onnx.training.settings import EngineSettings


class CurrentEngine:
    """Sessions over a training graph, with parameters and gradients bound where the store has them.

    Args:
        graph: what is trained.
        store: parameters and gradients; its blocks must stay where they are.
        settings: threads, and whether to recompute.

    Raises:
        BitnetOnnxError: ONNX Runtime cannot open the graph.
    """

    def __init__(self, graph: TrainingGraph, store: ParameterStore, settings: EngineSettings) -> None:
        self._store = store
        self._threads = settings.threads
        self._names: Final = list(graph.parameters)
        self._losses: Final = loss_names(graph.model, LOSS)
        self._inputs: Final = GraphInputs(graph.model, self._names)
        self._evaluation_graph: Final = evaluation_graph(graph.model)
        self._evaluated: Final = [value.name or "" for value in self._evaluation_graph.graph.outputs]
        self._evaluation_inputs: Final = GraphInputs(self._evaluation_graph, self._names)
        self._training: ort.InferenceSession | None = self._session(
            gradient_graph(graph, recompute=bool(settings.recompute))
        )
        self._evaluation: ort.InferenceSession | None = None

    def accumulate(self, inputs: Inputs) -> dict[str, float]:
        """Add the gradients of `loss` to the store's, and return all losses by output name.

        Raises:
            InputError: an input is missing or of another type.
            BitnetOnnxError: ONNX Runtime failed; gradients may be added in part.
        """
        if self._training is None:
            raise BitnetOnnxError("the engine is closed")
        binding = self._bound(self._training, self._inputs.arrays(inputs), self._losses)
        for name in self._names:
            gradient = self._store.gradient(name)
            _bind(binding.bind_input, accumulated_input(name), gradient)
            _bind(binding.bind_output, gradient_output(name), gradient)
        return self._run(self._training, binding, self._losses)

    def evaluate(self, inputs: Inputs) -> dict[str, float]:
        """The cross entropy alone, of the values that the store holds now; it raises as `accumulate`."""
        if self._evaluation is None:
            if self._training is None:
                raise BitnetOnnxError("the engine is closed")
            self._evaluation = self._session(as_identity(self._evaluation_graph))
        binding = self._bound(self._evaluation, self._evaluation_inputs.arrays(inputs), self._evaluated)
        return self._run(self._evaluation, binding, self._evaluated)

    def close(self) -> None:
        """Let go of the sessions; twice is fine."""
        self._training = self._evaluation = None

    def _session(self, model: ir.Model) -> ort.InferenceSession:
        try:
            return differentiated_session(serialized(model), self._threads)
        except Exception as error:  # ONNX Runtime's errors have no root of their own
            raise BitnetOnnxError(f"ONNX Runtime cannot open the training graph: {_one_line(error)}") from error

    def _bound(self, session: ort.InferenceSession, inputs: Inputs, losses: Sequence[str]) -> Any:
        binding = session.io_binding()
        read = {value.name for value in session.get_inputs()}
        for name in filter(read.__contains__, self._names):
            _bind(binding.bind_input, name, self._store.value(name))
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in losses:
            binding.bind_output(name)
        return binding

    def _run(self, session: ort.InferenceSession, binding: Any, losses: Sequence[str]) -> dict[str, float]:
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise BitnetOnnxError(f"ONNX Runtime failed in a training step: {_one_line(error)}") from error
        # Losses were bound first, and are all that is not in the store.
        values = binding.get_outputs()[: len(losses)]
        return {name: float(value.numpy()) for name, value in zip(losses, values, strict=True)}


def accumulated_input(parameter: str) -> str:
    """The input of the engine's graph that holds the gradient so far."""
    return f"accumulated.{parameter}"


def gradient_graph(graph: TrainingGraph, *, recompute: bool) -> ir.Model:
    """The differentiated graph whose gradient outputs are sums with inputs, so that one buffer can be both.

    An element-wise sum writes each element after it has read it, and nothing else reads the input.
    """
    boundaries = graph.boundaries if recompute else ()
    model = differentiate(graph.model, LOSS, list(graph.parameters), recompute=boundaries)
    outputs = {value.name: index for index, value in enumerate(model.graph.outputs)}
    for name, shape in graph.parameters.items():
        index = outputs[gradient_output(name)]
        gradient = model.graph.outputs[index]
        before = ir.Value(name=accumulated_input(name), shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        add = ir.node("Add", [gradient, before], name=f"accumulate.{name}")
        gradient.name = f"new.{name}"
        total = add.outputs[0]
        total.name, total.shape, total.type = gradient_output(name), before.shape, before.type
        model.graph.inputs.append(before)
        producer = gradient.producer()
        if producer is None:
            model.graph.append(add)
        else:
            # As soon as it is there, so that its memory is free again.
            model.graph.insert_after(producer, add)
        model.graph.outputs[index] = total
    return model


def serialized(model: ir.Model) -> bytes:
    """Its protobuf; parameters are inputs, so it is small."""
    return bytes(ir.to_proto(model).SerializeToString())


def _bind(bind: Any, name: str, array: npt.NDArray[np.float32]) -> None:
    bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
