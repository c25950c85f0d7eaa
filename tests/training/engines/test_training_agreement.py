"""Both engines on the training graph of a small Llama."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engine_graphs import decoder_inputs, decoder_store, small_decoder

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.engines.choice import choose_engine, needs_file, open_engine
from bitnet_onnx.training.engines.current import CurrentEngine
from bitnet_onnx.training.engines.engine import GradientEngine
from bitnet_onnx.training.engines.ort_training import OrtTrainingEngine, check_traps
from bitnet_onnx.training.graph.decoder import TrainingGraph
from bitnet_onnx.training.graph.options import LOSS, Term, loss_output
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import EngineName, EngineSettings

_SETTINGS = EngineSettings(threads=1)


def _gradients(
    engine: GradientEngine, store: ParameterStore, *batches: dict[str, npt.NDArray[Any]]
) -> tuple[dict[str, float], dict[str, npt.NDArray[np.float32]]]:
    """The losses of the last batch and the gradients of all together."""
    store.gradients[:] = 0
    losses: dict[str, float] = {}
    for batch in batches:
        losses = engine.accumulate(batch)
    return losses, {name: store.gradient(name).copy() for name in store}


def _agree(
    got: dict[str, npt.NDArray[np.float32]], expected: dict[str, npt.NDArray[np.float32]], tolerance: float
) -> None:
    for name, gradient in expected.items():
        scale = np.linalg.norm(gradient)
        assert scale > 0, name
        assert np.linalg.norm(got[name] - gradient) <= tolerance * scale, name


# Both round activations that differ in their last bit: one that lies between two steps may go either way.
@pytest.mark.parametrize(
    ("every_term", "activation_bits", "tolerance"),
    [(False, 0, 1e-5), (True, 0, 1e-5), (True, 8, 0.05)],
    ids=["cross entropy", "every term", "rounded activations"],
)
def test_both_engines_agree(
    training_python: Path, tmp_path: Path, every_term: bool, activation_bits: int, tolerance: float
) -> None:
    graph = small_decoder(every_term=every_term, activation_bits=activation_bits)
    store = decoder_store(graph, tmp_path / "store")
    current = CurrentEngine(graph, store, _SETTINGS)
    training = OrtTrainingEngine(graph, store, _SETTINGS, training_python)
    with contextlib.closing(current), contextlib.closing(training):
        for step, strength in enumerate((0.0, 0.5, 1.0)):
            batches = [decoder_inputs(graph, rows, 32, strength=strength, seed=step) for rows in (2, 1)]
            losses, gradients = _gradients(training, store, *batches)
            assert _gradients(current, store, *batches)[0] == pytest.approx(losses, rel=tolerance)
            _agree(_gradients(current, store, *batches)[1], gradients, tolerance)
            name = loss_output(Term.CROSS_ENTROPY)
            alone = {key: value for key, value in batches[-1].items() if not key.startswith(("teacher.", "weight."))}
            for engine in (current, training):
                assert engine.evaluate(alone) == {name: pytest.approx(losses[name], rel=tolerance)}
            expected = {LOSS, *(loss_output(term) for term in (Term if every_term else [Term.CROSS_ENTROPY]))}
            assert losses.keys() == expected
            store.values[:] -= 0.05 * store.gradients


def test_strength_changes_the_loss() -> None:
    graph = small_decoder()
    engine = CurrentEngine(graph, decoder_store(graph), _SETTINGS)
    batches = [decoder_inputs(graph, 2, 32, strength=strength) for strength in (0.0, 0.5, 1.0)]
    assert len({engine.evaluate(batch)[loss_output(Term.CROSS_ENTROPY)] for batch in batches}) == 3


def test_micro_batches_are_the_batch() -> None:
    graph = small_decoder(activation_bits=0)
    store = decoder_store(graph)
    engine = CurrentEngine(graph, store, _SETTINGS)
    whole = decoder_inputs(graph, 6, 32)
    parts = [
        {name: array[rows] if array.ndim == 2 else array for name, array in whole.items()}
        for rows in (slice(0, 4), slice(4, 5), slice(5, 6))
    ]
    _, expected = _gradients(engine, store, whole)
    _agree(_gradients(engine, store, *parts)[1], expected, 1e-5)


def test_values_computed_again_give_the_same_gradients() -> None:
    graph = small_decoder(num_hidden_layers=3, activation_bits=0)
    store = decoder_store(graph)
    batch = decoder_inputs(graph, 2, 32)
    kept = CurrentEngine(graph, store, _SETTINGS)
    again = CurrentEngine(graph, store, EngineSettings(threads=1, recompute=True))
    losses, gradients = _gradients(kept, store, batch)
    other_losses, other_gradients = _gradients(again, store, batch)
    assert other_losses == pytest.approx(losses, rel=1e-6)
    _agree(other_gradients, gradients, 1e-5)


@pytest.mark.parametrize("every_term", [False, True])
def test_the_graph_of_a_decoder_steps_into_no_trap(every_term: bool) -> None:
    check_traps(small_decoder(every_term=every_term).model)


class TestChoice:
    graph: TrainingGraph = small_decoder(num_hidden_layers=1)

    def test_auto_is_the_faster_one(self) -> None:
        engine = open_engine(self.graph, decoder_store(self.graph), EngineSettings())
        assert isinstance(engine, CurrentEngine)
        assert not needs_file(EngineSettings())

    def test_onnxruntime_training_is_opened_by_name(self, training_python: Path, tmp_path: Path) -> None:
        settings = EngineSettings(EngineName.ONNXRUNTIME_TRAINING, threads=1)
        assert needs_file(settings)
        stages: list[str] = []
        engine = open_engine(
            self.graph,
            decoder_store(self.graph, tmp_path / "store"),
            settings,
            lambda stage, done, total: stages.append(stage),
        )
        with contextlib.closing(engine):
            assert isinstance(engine, OrtTrainingEngine)
            assert stages == ["done"]

    def test_what_an_engine_cannot_do_is_refused(self) -> None:
        settings = EngineSettings(EngineName.ONNXRUNTIME_TRAINING, recompute=True)
        with pytest.raises(InputError, match=r"engine\.recompute = true: onnxruntime-training keeps all values; take"):
            choose_engine(settings)
