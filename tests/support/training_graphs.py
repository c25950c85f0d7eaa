"""Training graphs of random decoders on the current ONNX Runtime, and their inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime
from random_decoders import SPECS, RandomDecoder

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.training.graph.decoder import TrainingGraph, training_graph
from bitnet_onnx.training.graph.options import (
    INPUT_IDS,
    LABELS,
    NORMALIZER,
    POSITIONS,
    STRENGTH,
    TEACHER_LOGITS,
    GraphOptions,
    Term,
    teacher_state,
    weight_input,
)
from bitnet_onnx.training.graph.stop_gradient import as_identity
from bitnet_onnx.training.settings import IGNORED

Inputs = dict[str, np.ndarray]

#: Which features rotate is a matter of tables: two of the many sizes of heads stand for all.
NAMES = [name for name in SPECS if "features rotated" not in name or name.startswith(("20 of 80", "40 of 40"))]


def tokens(spec: DecoderSpec, batch: int, length: int, seed: int = 0) -> Inputs:
    """Ids and labels, of which every fifth is ignored."""
    generator = np.random.default_rng(seed)
    ids, labels = generator.integers(0, spec.vocab_size, (2, batch, length))
    labels.reshape(-1)[::5] = IGNORED
    return {INPUT_IDS: ids, LABELS: labels}


def teacher(spec: DecoderSpec, batch: int, length: int, widths: Mapping[str, int]) -> Inputs:
    """What a teacher of other widths gives."""
    generator = np.random.default_rng(9)
    states = {
        teacher_state(name): generator.standard_normal((batch, length, width), np.float32)
        for name, width in widths.items()
    }
    return {TEACHER_LOGITS: 3 * generator.standard_normal((batch, length, spec.vocab_size), np.float32), **states}


def scalars(data: Inputs, strength: float | list[float] = 0.0) -> Inputs:
    """The other inputs of a step that has these tokens only."""
    return {
        NORMALIZER: np.array((data[LABELS] != IGNORED).sum(), np.float32),
        POSITIONS: np.array(data[LABELS].size, np.float32),
        STRENGTH: np.atleast_1d(np.array(strength, np.float32)),
        **{weight_input(term): np.array(1 + index / 4, np.float32) for index, term in enumerate(Term)},
    }


class GraphRun:
    """A graph with a random decoder's tensors.

    Args:
        spec: of the decoder.
        options: of the graph.
        model: what runs in the graph's place.
    """

    def __init__(self, spec: DecoderSpec, options: GraphOptions, model: ir.Model | None = None) -> None:
        self.graph: TrainingGraph = training_graph(spec, options)
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.intra_op_num_threads = 1
        proto = ir.to_proto(as_identity(self.graph.model) if model is None else model)
        self.session = onnxruntime.InferenceSession(proto.SerializeToString(), settings)
        decoder = RandomDecoder(spec)
        self.parameters = {role: decoder.read(role) for role in self.graph.parameters}

    def __call__(self, data: Inputs) -> Inputs:
        """All outputs by name; of `data` what the graph takes."""
        names = [value.name for value in self.session.get_outputs()]
        given = {name: value for name, value in data.items() if name in self.graph.inputs}
        return dict(zip(names, self.session.run(names, {**self.parameters, **given}), strict=True))


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Of the last axis, in float64."""
    wide = x.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the labelled tokens."""
    counted = labels != IGNORED
    picked = np.take_along_axis(log_softmax(logits), np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return float(-picked[counted].mean())
