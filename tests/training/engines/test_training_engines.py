from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_graphs import SHAPES, by_hand, hand_made_graph, hand_made_inputs, hand_made_store

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.training.engines.current import CurrentEngine
from bitnet_onnx.training.engines.engine import GradientEngine
from bitnet_onnx.training.engines.ort_training import OrtTrainingEngine
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import EngineSettings

_SETTINGS = EngineSettings(threads=1)
_NAMES = ("onnxruntime", "onnxruntime-training")


@pytest.fixture(scope="module", params=_NAMES)
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GradientEngine, ParameterStore]]:
    """An engine over the hand-made graph; its parameters are not changed for good."""
    store = hand_made_store(tmp_path_factory.mktemp("engine") / "store")
    engine: GradientEngine
    if request.param == _NAMES[0]:
        engine = CurrentEngine(hand_made_graph(), store, _SETTINGS)
    else:
        python: Path = request.getfixturevalue("training_python")
        engine = OrtTrainingEngine(hand_made_graph(), store, _SETTINGS, python)
    with contextlib.closing(engine):
        yield engine, store


Opened = tuple[GradientEngine, ParameterStore]


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_losses_and_gradients_are_those_by_hand(opened: Opened, strength: float) -> None:
    engine, store = opened
    inputs = hand_made_inputs(strength)
    store.gradients[:] = 0
    losses = engine.accumulate(inputs)
    loss, gradients = by_hand(store, inputs)
    assert losses == {"loss": pytest.approx(loss, rel=1e-6), "loss.cross_entropy": pytest.approx(loss / 0.75, rel=1e-6)}
    for name, gradient in gradients.items():
        np.testing.assert_allclose(store.gradient(name), gradient, rtol=1e-5, atol=1e-7, err_msg=name)


def test_gradients_of_micro_batches_add_up(opened: Opened) -> None:
    engine, store = opened
    store.gradients[:] = 0
    parts = [hand_made_inputs(0.5, rows=rows, seed=rows) for rows in (3, 1, 2)]
    for part in parts:
        engine.accumulate(part)
    whole = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for part in parts:
        for name, gradient in by_hand(store, part)[1].items():
            whole[name] += gradient
    for name, gradient in whole.items():
        np.testing.assert_allclose(store.gradient(name), gradient, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_parameter_that_the_loss_does_not_see_keeps_its_gradient(opened: Opened) -> None:
    engine, store = opened
    store.gradients[:] = 0
    store.gradient("unused")[...] = 3
    engine.accumulate(hand_made_inputs())
    assert store.gradient("unused").tolist() == [3, 3, 3]
    between = np.ones(store.size, bool)
    for name in store:
        between[store.place(name)] = False
    assert not store.gradients[between].any()


def test_evaluation_is_the_forward_pass_and_leaves_gradients_alone(opened: Opened) -> None:
    engine, store = opened
    store.gradients[:] = 7
    inputs = hand_made_inputs(0.5)
    loss = by_hand(store, inputs)[0] / 0.75
    del inputs["weight.cross_entropy"]
    assert engine.evaluate(inputs) == {"loss.cross_entropy": pytest.approx(loss, rel=1e-6)}
    assert set(store.gradients) == {7}


def test_each_step_sees_the_values_of_its_time(opened: Opened) -> None:
    engine, store = opened
    inputs = hand_made_inputs()
    before = store.values.copy()
    losses = []
    for _ in range(3):
        store.gradients[:] = 0
        losses.append(engine.accumulate(inputs)["loss"])
        assert losses[-1] == pytest.approx(by_hand(store, inputs)[0], rel=1e-5)
        assert engine.evaluate(inputs)["loss.cross_entropy"] == pytest.approx(losses[-1] / 0.75, rel=1e-6)
        store.values[:] -= 0.1 * store.gradients
    assert losses[0] > losses[1] > losses[2]
    store.values[:] = before


def test_one_thread_gives_the_same_bits_twice(opened: Opened) -> None:
    engine, store = opened
    results = []
    for _ in range(2):
        store.gradients[:] = 0
        losses = engine.accumulate(hand_made_inputs())
        results.append((losses, store.gradients.copy()))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_inputs_that_the_graph_does_not_read_are_left_out(opened: Opened) -> None:
    engine, _ = opened
    inputs = hand_made_inputs()
    assert engine.evaluate(inputs | {"positions": np.array(15, np.float32)}) == engine.evaluate(inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: inputs.pop("labels"), "the training graph reads labels, which is not among its inputs"),
        (
            lambda inputs: inputs.update(labels=inputs["labels"].astype(np.int32)),
            "input labels of the training graph is int32 of 2 dimensions, expected int64 of 2",
        ),
        (
            lambda inputs: inputs.update(input_ids=inputs["input_ids"][0]),
            "input input_ids of the training graph is int64 of 1 dimensions, expected int64 of 2",
        ),
    ],
)
def test_wrong_inputs_are_named(opened: Opened, change: Callable[[dict[str, object]], None], message: str) -> None:
    engine, _ = opened
    inputs = dict(hand_made_inputs())
    change(inputs)
    with pytest.raises(InputError, match=message):
        engine.accumulate(inputs)


def test_turned_arrays_are_read_as_they_are_seen(opened: Opened) -> None:
    engine, _ = opened
    inputs = hand_made_inputs()
    turned = {name: np.array(array, order="F") for name, array in inputs.items()}
    assert engine.evaluate(turned) == engine.evaluate(inputs)


def test_a_closed_engine_says_so(training_python: Path, tmp_path: Path) -> None:
    store = hand_made_store(tmp_path / "store")
    engines: list[GradientEngine] = [
        CurrentEngine(hand_made_graph(), store, _SETTINGS),
        OrtTrainingEngine(hand_made_graph(), store, _SETTINGS, training_python),
    ]
    for engine in engines:
        engine.close()
        engine.close()
        for work in (engine.accumulate, engine.evaluate):
            with pytest.raises(BitnetOnnxError, match=r"is closed|has ended: open"):
                work(hand_made_inputs())


def test_a_failed_step_is_one_line() -> None:
    engine = CurrentEngine(hand_made_graph(), hand_made_store(), _SETTINGS)
    inputs = hand_made_inputs()
    with pytest.raises(
        BitnetOnnxError, match=r"ONNX Runtime failed in a training step: .*out of data bounds"
    ) as caught:
        engine.accumulate(inputs | {"input_ids": inputs["input_ids"] + 100})
    assert "\n" not in str(caught.value)
