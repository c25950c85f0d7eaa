from __future__ import annotations

from dataclasses import replace

import pytest
from engine_graphs import HandMade, hand_made_graph
from random_decoders import BASE

from bitnet_onnx.errors import InputError
from bitnet_onnx.training._float_session import float_graph
from bitnet_onnx.training.engines import memory
from bitnet_onnx.training.engines.memory import MemoryEstimate, MemoryModel, free_bytes
from bitnet_onnx.training.settings import EngineName

_MIB = 1 << 20
_PROCESS = 170 * _MIB


def _model(graph: HandMade | None = None, engine: EngineName = EngineName.ONNXRUNTIME) -> MemoryModel:
    """Lines of 10 MiB + 40 MiB a sequence, and a quarter of that when values are computed again."""
    model = MemoryModel(graph or replace(hand_made_graph(), boundaries=("x", "y")), 5, engine=engine)
    model._lines = {False: (10 * _MIB, 40 * _MIB), True: (10 * _MIB, 10 * _MIB)}
    return model


def test_everything_is_counted() -> None:
    estimate = _model().estimate(3)
    parameters = 4 * (11 * 8 + 8 * 8 + 3)
    assert estimate == MemoryEstimate(parameters, parameters, 2 * parameters, 130 * _MIB, _PROCESS)
    assert estimate.total == 4 * parameters + 130 * _MIB + _PROCESS
    assert str(replace(estimate, teacher=3 << 30)) == (
        "3.3 GiB (parameters 1 MiB, gradients 1 MiB, optimizer 1 MiB, activations 130 MiB, teacher 3.0 GiB, "
        "engine 170 MiB)"
    )


def test_moments_and_a_teacher_are_counted() -> None:
    graph = hand_made_graph()
    parameters = 4 * 155
    model = MemoryModel(graph, 5, moments=1, teacher=(graph.model, 1000))
    model._lines = {False: (0, 0)}
    assert model.estimate(1).moments == parameters
    assert 4000 < model.estimate(1).teacher < model.estimate(2).teacher < 10_000


def test_what_a_teacher_says_is_counted() -> None:
    """Its logits are no value between its nodes, and lie there until the student has read them."""
    graph = float_graph(BASE, 8)
    model = MemoryModel(hand_made_graph(), 8, teacher=(graph.model, 0))
    silent = float_graph(BASE, 8)
    silent.model.graph.outputs[0].shape = None
    without = MemoryModel(hand_made_graph(), 8, teacher=(silent.model, 0))
    assert model.estimate(3).teacher - without.estimate(3).teacher == 4 * 3 * 8 * BASE.vocab_size


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (_PROCESS + 400 * _MIB, (8, False)),
        (_PROCESS + 340 * _MIB, (8, False)),
        (_PROCESS + 250 * _MIB, (4, False)),  # 5 would fit: 4 and 4 is better than 5 and 3
        (_PROCESS + 51 * _MIB, (1, False)),
        (_PROCESS + 49 * _MIB, (3, True)),
        (_PROCESS + 21 * _MIB, (1, True)),
    ],
)
def test_the_largest_micro_batch_that_fits(budget: int, expected: tuple[int, bool]) -> None:
    plan = _model().plan(8, budget)
    assert (plan.micro_batch, plan.recompute) == expected
    assert plan.estimate.total <= budget


def test_what_the_user_chose_stays() -> None:
    model = _model()
    plan = model.plan(8, _PROCESS + 100 * _MIB, micro_batch=4)
    assert (plan.micro_batch, plan.recompute) == (4, True)
    plan = model.plan(8, _PROCESS + 400 * _MIB, recompute=True)
    assert (plan.micro_batch, plan.recompute) == (8, True)
    with pytest.raises(InputError, match=r"engine\.recompute = true, or a smaller engine\.micro_batch than 4"):
        model.plan(8, _PROCESS + 100 * _MIB, micro_batch=4, recompute=False)


def test_what_does_not_fit_is_refused_with_figures_and_advice() -> None:
    with pytest.raises(InputError) as caught:
        _model().plan(8, _PROCESS + 5 * _MIB)
    assert str(caught.value) == (
        "training needs at least 191 MiB (parameters 1 MiB, gradients 1 MiB, optimizer 1 MiB, activations 21 MiB, "
        "engine 170 MiB) and 175 MiB are allowed: take a shorter data.length than 5"
    )


def test_too_many_parameters_are_refused_with_other_advice() -> None:
    graph = replace(hand_made_graph(), parameters={"weight": (1 << 20, 1 << 10)}, boundaries=("x", "y"))
    with pytest.raises(InputError, match=r'optimizer 8\.0 GiB.* take a smaller model, or optimizer\.name = "sgd"$'):
        _model(graph).plan(8, 1 << 32)


def test_onnxruntime_training_does_not_recompute() -> None:
    model = _model(engine=EngineName.ONNXRUNTIME_TRAINING)
    with pytest.raises(InputError, match=r'take engine\.name = "onnxruntime"'):
        model.plan(8, _PROCESS + 130 * _MIB)
    assert model.plan(8, _PROCESS + 191 * _MIB).micro_batch == 2


def test_without_a_budget_it_is_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_bytes() < memory.usable_bytes()
    monkeypatch.setattr(memory, "free_bytes", lambda: _PROCESS + 100 * _MIB)
    assert _model().plan(8).micro_batch == 2
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    with pytest.raises(InputError, match="and 1 MiB are free: take"):
        _model().plan(8)


def test_available_memory_of_the_system_is_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory, "usable_bytes", lambda: 1 << 30)
    file = tmp_path / "meminfo"  # type: ignore[operator]
    monkeypatch.setattr(memory, "_MEMINFO", file)
    assert free_bytes() == int((1 << 30) * 0.9)
    file.write_text("MemTotal:  9 kB\nMemAvailable:     1000 kB\n", "ascii")
    assert free_bytes() == int(1_024_000 * 0.9)
