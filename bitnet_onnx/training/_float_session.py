"""A decoder in floats on ONNX Runtime, which computes with the very weights that were read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.arena import share_arena
from bitnet_onnx.training.graph.decoder import TrainingGraph, training_graph
from bitnet_onnx.training.graph.options import INPUT_IDS, GraphOptions
from bitnet_onnx.training.graph.stop_gradient import as_identity
from bitnet_onnx.training.settings import BlockWeights, HeadWeights
from bitnet_onnx.training.start import InitialTensors

LOGITS: Final = "logits"
_ERRORS: Final = 3


def float_graph(spec: DecoderSpec, max_length: int, layer: int | None = None) -> TrainingGraph:
    """The graph of a decoder without rounding and without losses: `logits`, and the states of a layer."""
    options = GraphOptions(
        max_length=max_length,
        weights=BlockWeights.FLOAT,
        activation_bits=0,
        head=HeadWeights.FLOAT,
        terms=frozenset(),
        relation_layer=layer,
    )
    graph = training_graph(spec, options)
    return TrainingGraph(as_identity(graph.model), graph.parameters, graph.boundaries)


class FloatSession:
    """Runs a float graph.

    Args:
        graph: of `float_graph`, perhaps with other outputs.
        tensors: the weights.
        threads: to compute with; 0 is all cores.
    """

    def __init__(self, graph: TrainingGraph, tensors: InitialTensors, threads: int) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS
        options.intra_op_num_threads = threads
        share_arena(options)
        content = ir.to_proto(graph.model).SerializeToString()
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._weights: list[FloatArray] = []
        needed = {value.name for value in self._session.get_inputs()}
        for role, shape in graph.parameters.items():
            if role in needed:
                weight = np.empty(shape, np.float32)
                tensors.read_into(role, weight)
                # No copy: the session reads this memory.
                self._weights.append(weight)
                self._binding.bind_ortvalue_input(role, ort.OrtValue.ortvalue_from_numpy(weight))

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return sum(weight.nbytes for weight in self._weights)

    def __call__(
        self, input_ids: npt.NDArray[np.int64], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, FloatArray]:
        """All outputs, new arrays of these shapes, of tokens int64 `[batch, length]`."""
        self._binding.bind_cpu_input(INPUT_IDS, np.ascontiguousarray(input_ids, np.int64))
        found: dict[str, FloatArray] = {}
        for name, shape in shapes.items():
            found[name] = np.empty(shape, np.float32)
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(found[name]))
        self._session.run_with_iobinding(self._binding)
        return found
