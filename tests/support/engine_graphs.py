"""Training graphs: one small enough to be differentiated by hand, and that in numpy; one of a small decoder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from random_decoders import BASE

from bitnet_onnx.decoder import Attention, Rotary
from bitnet_onnx.training.graph.decoder import TrainingGraph, training_graph
from bitnet_onnx.training.graph.options import (
    INPUT_IDS,
    LABELS,
    NORMALIZER,
    POSITIONS,
    RELATION_STATES,
    STRENGTH,
    TEACHER_LOGITS,
    GraphOptions,
    Term,
    teacher_state,
    weight_input,
)
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import IGNORED

VOCABULARY = 11
WIDTH = 8
SHAPES = {"embed": (VOCABULARY, WIDTH), "weight": (WIDTH, WIDTH), "unused": (3,)}


@dataclass(frozen=True)
class HandMade:
    """What `TrainingGraph` is, of a graph that no decoder has."""

    model: ir.Model
    parameters: dict[str, tuple[int, ...]] = field(default_factory=lambda: dict(SHAPES))
    boundaries: tuple[str, ...] = ()


def hand_made_graph() -> HandMade:
    """Embedding, a ternary linear layer, a tied head and a cross entropy."""
    node = helper.make_node
    nodes = [
        node("Gather", ["embed", "input_ids"], ["x"]),
        node("Abs", ["weight"], ["magnitude"]),
        node("ReduceMean", ["magnitude"], ["mean"], keepdims=0),
        node("Max", ["mean", "least"], ["scale"]),
        node("Div", ["weight", "scale"], ["scaled"]),
        node("Round", ["scaled"], ["rounded"]),
        node("Clip", ["rounded", "low", "high"], ["codes"]),
        node("Mul", ["codes", "scale"], ["quantized"]),
        node("Sub", ["quantized", "weight"], ["error"]),
        node("StopGradient", ["error"], ["stopped"], domain="bitnet.training"),
        node("Mul", ["stopped", "quantization.strength"], ["correction"]),
        node("Add", ["weight", "correction"], ["ternary"]),
        node("MatMul", ["x", "ternary"], ["y"]),
        node("Transpose", ["embed"], ["head"], perm=[1, 0]),
        node("MatMul", ["y", "head"], ["logits"]),
        node("Reshape", ["logits", "rows"], ["row_logits"]),
        node("Reshape", ["labels", "flat"], ["row_labels"]),
        node(
            "SoftmaxCrossEntropyLoss",
            ["row_logits", "row_labels"],
            ["sum", "log_prob"],
            reduction="sum",
            ignore_index=IGNORED,
        ),
        node("Div", ["sum", "normalizer"], ["loss.cross_entropy"]),
        node("Mul", ["loss.cross_entropy", "weight.cross_entropy"], ["loss"]),
    ]

    def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    tokens = ("batch_size", "sequence_length")
    inputs = [value(name, *tokens, kind=TensorProto.INT64) for name in ("input_ids", "labels")]
    inputs += [value(name) for name in ("normalizer", "quantization.strength", "weight.cross_entropy")]
    inputs += [value(name, *shape) for name, shape in SHAPES.items()]
    constants = {
        "least": np.float32(1e-5),
        "low": np.float32(-1),
        "high": np.float32(1),
        "rows": np.array([-1, VOCABULARY]),
        "flat": np.array([-1]),
    }
    graph = helper.make_graph(
        nodes,
        "hand_made",
        inputs,
        [value("loss"), value("loss.cross_entropy")],
        [numpy_helper.from_array(np.asarray(constant), name) for name, constant in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bitnet.training", 1)]
    return HandMade(ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8)))


def hand_made_store(path: Path | None = None) -> ParameterStore:
    """Its parameters, Gaussian."""
    store = ParameterStore(SHAPES, path=path)
    rng = np.random.default_rng(5)
    for name in store:
        store.value(name)[...] = rng.normal(0, 0.5, store.shapes[name])
    return store


def hand_made_inputs(strength: float = 1.0, *, rows: int = 3, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, VOCABULARY, (rows, 5))
    labels[0, :2] = IGNORED
    return {
        "input_ids": rng.integers(0, VOCABULARY, (rows, 5)),
        "labels": labels,
        "normalizer": np.array(13, np.float32),
        "quantization.strength": np.array(strength, np.float32),
        "weight.cross_entropy": np.array(0.75, np.float32),
    }


def by_hand(store: ParameterStore, inputs: dict[str, npt.NDArray[Any]]) -> tuple[float, dict[str, npt.NDArray[Any]]]:
    """The loss and its gradients in float64; the quantization passes gradients straight through."""
    embed, weight = (store.value(name).astype(np.float64) for name in ("embed", "weight"))
    ids, labels = inputs["input_ids"].ravel(), inputs["labels"].ravel()
    scale = max(np.abs(weight).mean(), 1e-5)
    ternary = weight + inputs["quantization.strength"] * (np.clip(np.round(weight / scale), -1, 1) * scale - weight)
    x = embed[ids]
    y = x @ ternary
    logits = y @ embed.T
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = labels != IGNORED
    share = float(inputs["weight.cross_entropy"] / inputs["normalizer"])
    rows = np.arange(ids.size)[counted]
    loss = -log_prob[rows, labels[counted]].sum() * share
    upstream = np.exp(log_prob) * counted[:, None]
    upstream[rows, labels[counted]] -= 1
    upstream *= share
    behind = upstream @ embed
    embed_gradient = upstream.T @ y
    np.add.at(embed_gradient, ids, behind @ ternary.T)
    return loss, {"embed": embed_gradient, "weight": x.T @ behind, "unused": np.zeros(3)}


def small_decoder(
    *, length: int = 32, every_term: bool = False, activation_bits: int = 8, **changes: Any
) -> TrainingGraph:
    """The training graph of a Llama with ternary weights, grouped queries and a tied head."""
    spec = replace(BASE, tie_word_embeddings=True, context_length=length)
    spec = replace(spec, **changes)
    if "hidden_size" in changes:
        spec = replace(spec, head_dim=spec.hidden_size // 4, intermediate_size=3 * spec.hidden_size)
        spec = replace(spec, attention=(Attention(Rotary(10000.0, spec.head_dim)),))
    options = GraphOptions(max_length=length, activation_bits=activation_bits)
    if every_term:
        relation = {"relation_layer": 1, "relation_heads": 2}
        options = replace(options, terms=frozenset(Term), temperature=2.0, **relation)
    return training_graph(spec, options)


def decoder_store(graph: TrainingGraph, path: Path | None = None) -> ParameterStore:
    """Its parameters: ones for norms, Gaussian for matrices."""
    store = ParameterStore(graph.parameters, path=path)
    rng = np.random.default_rng(7)
    for name in store:
        value = store.value(name)
        value[...] = 1 if value.ndim == 1 else rng.normal(0, 0.05, value.shape)
    return store


def decoder_inputs(
    graph: TrainingGraph, batch: int, length: int, *, strength: float = 1.0, seed: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """A batch of random tokens, what a teacher would say, and a weight of 1 for each term of the loss."""
    vocabulary = graph.parameters["embed_tokens.weight"][0]
    rng = np.random.default_rng(seed)
    inputs: dict[str, npt.NDArray[Any]] = {
        INPUT_IDS: rng.integers(0, vocabulary, (batch, length)),
        LABELS: rng.integers(0, vocabulary, (batch, length)),
        NORMALIZER: np.array(batch * length, np.float32),
        POSITIONS: np.array(batch * length, np.float32),
        STRENGTH: np.full(1, strength, np.float32),
    }
    for name in graph.inputs:
        if name == TEACHER_LOGITS or name in map(teacher_state, RELATION_STATES):
            # A teacher's queries, keys and values may be of any width.
            width = vocabulary if name == TEACHER_LOGITS else 48
            inputs[name] = rng.normal(0, 1, (batch, length, width)).astype(np.float32)
    return inputs | {weight_input(term): np.array(1, np.float32) for term in Term}
