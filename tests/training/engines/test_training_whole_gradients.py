"""Gradients of whole training graphs, term by term, against those of onnxruntime-training 1.19.2."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from random_decoders import SPECS, RandomDecoder
from training_graphs import scalars, teacher, tokens

from bitnet_onnx.training.engines.current import CurrentEngine
from bitnet_onnx.training.engines.ort_training import OrtTrainingEngine
from bitnet_onnx.training.graph.decoder import training_graph
from bitnet_onnx.training.graph.options import GraphOptions, Term, loss_output, weight_input
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import EngineSettings, HeadWeights

_SETTINGS = EngineSettings(threads=1)
_LENGTH = 12
#: Of the norm of each parameter's gradient. Float activations: rounded ones may fall either way.
_TOLERANCE = 2e-5


@pytest.mark.parametrize(
    ("family", "head"),
    [("sub-norms", HeadWeights.INT8), ("like gemma 2", HeadWeights.FLOAT), ("like gpt-neox", HeadWeights.INT8)],
)
def test_every_term_has_the_gradients_of_onnxruntime_training(
    family: str, head: HeadWeights, training_python: Path, tmp_path: Path
) -> None:
    spec = SPECS[family]
    options = GraphOptions(
        _LENGTH,
        activation_bits=0,
        head=head,
        terms=frozenset(Term),
        temperature=2.0,
        relation_layer=1,
        relation_heads=2,
    )
    graph = training_graph(spec, options)
    store, decoder = ParameterStore(graph.parameters, path=tmp_path / "store"), RandomDecoder(spec)
    for name in store:
        store.value(name)[...] = decoder.read(name)
    data = tokens(spec, 2, _LENGTH)
    data |= teacher(spec, 2, _LENGTH, {"query": 48, "key": 32, "value": 32})
    engines = CurrentEngine(graph, store, _SETTINGS), OrtTrainingEngine(graph, store, _SETTINGS, training_python)
    with contextlib.closing(engines[0]), contextlib.closing(engines[1]):
        for strength in (0.0, 1.0):
            reached: set[str] = set()
            for term in Term:
                weights = {weight_input(other): np.array(other is term, np.float32) for other in Term}
                inputs = data | scalars(data, strength) | weights
                losses, found = [], []
                for engine in engines:
                    store.gradients[:] = 0
                    losses.append(engine.accumulate(inputs)[loss_output(term)])
                    found.append({name: store.gradient(name).copy() for name in store})
                assert losses[0] == pytest.approx(losses[1], rel=1e-5)
                for name, expected in found[1].items():
                    scale = np.linalg.norm(expected)
                    reached |= {name} if scale else set()
                    assert np.linalg.norm(found[0][name] - expected) <= _TOLERANCE * scale, (term, strength, name)
            assert reached == set(store)
