"""The loop over a small numpy problem: what it does at each step, how it ends, and how it goes back."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path

import numpy as np
import pytest
from least_squares import LeastSquares, Stream, Validation, Watch, loss_lines, make_parts, settings

from bitnet_onnx.errors import InputError, TrainingError
from bitnet_onnx.training.loop import run
from bitnet_onnx.training.records import End, StepRecord
from bitnet_onnx.training.settings import (
    LoopSettings,
    OptimizerName,
    OptimizerSettings,
    QuantizationSettings,
    Ramp,
    RateCurve,
)


def test_a_run_learns_and_says_what_it_did(tmp_path: Path) -> None:
    given = settings(tmp_path, LoopSettings(60, batch=4, evaluate_every=20, checkpoint_every=25))
    given = dataclasses.replace(given, quantization=QuantizationSettings(Ramp(1.0, start=0.25, begin=30)))
    watch = Watch()
    parts = make_parts(given, watch)
    outcome = run(given, parts)
    assert outcome.end is End.FINISHED
    assert (outcome.step, outcome.signal, watch.begun, watch.closed) == (60, None, [0], 1)
    assert [one.step for one in watch.steps] == list(range(1, 61))
    assert [one.step for one in watch.evaluations] == [20, 40, 60]
    assert watch.evaluations[-1].loss < watch.evaluations[0].loss < watch.steps[0].loss * 1.5
    assert watch.evaluations[0].perplexity == math.exp(watch.evaluations[0].loss)
    assert {*range(0, 61, 25), 60} <= {one.step for one in watch.checkpoints}
    assert (watch.steps[29].strength, watch.steps[30].strength) == ((0.25,), (1.0,))
    assert isinstance(parts.engine, LeastSquares)
    assert set(parts.engine.strengths) == {1.0}, "evaluations are of the quantized model"
    first = watch.steps[0]
    assert first.terms == {"cross_entropy": first.loss}
    assert first.weights == {"cross_entropy": 1.0}
    assert first.positions == 24
    assert 0 < first.tokens < 24
    assert watch.steps[-1].total_positions == 60 * 24
    assert outcome.best_loss == min(one.loss for one in watch.evaluations)
    assert outcome.best is not None
    assert outcome.best.name == f"step-{outcome.best_step:08}"


def test_micro_batches_add_up_to_the_batch(tmp_path: Path) -> None:
    whole, halves = Watch(), Watch()
    for name, watch, micro in (("a", whole, 0), ("b", halves, 3)):
        given = settings(tmp_path / name, LoopSettings(5, batch=8))
        parts = make_parts(given, watch, micro_batch=micro)
        run(given, parts)
        assert isinstance(parts.engine, LeastSquares)
        assert parts.engine.calls == 5 * (3 if micro else 1)
    np.testing.assert_allclose(
        [one.loss for one in halves.steps], [one.loss for one in whole.steps], rtol=1e-5, err_msg="sums of parts"
    )
    np.testing.assert_allclose(
        [one.gradient_norm for one in halves.steps], [one.gradient_norm for one in whole.steps], rtol=1e-4
    )


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    optimizer = OptimizerSettings(learning_rate=0.01, clip=0.5, weight_decay=0.0)
    given = settings(
        tmp_path, LoopSettings(1, batch=4), dataclasses.replace(optimizer, name=OptimizerName.SGD, momentum=0.0)
    )
    watch = Watch()
    parts = make_parts(given, watch)
    before = parts.store.values.copy()
    run(given, parts)
    (record,) = watch.steps
    assert record.clipped
    assert record.gradient_norm > 0.5
    assert np.linalg.norm(parts.store.values - before) == pytest.approx(0.01 * 0.5, rel=1e-4)


@pytest.mark.parametrize("stop", [7, 10, 23])
def test_a_signal_saves_and_the_next_run_goes_on_bit_for_bit(tmp_path: Path, stop: int) -> None:
    loop = LoopSettings(30, batch=4, evaluate_every=5, checkpoint_every=10)
    whole = Watch()
    run(settings(tmp_path / "whole", loop), make_parts(settings(tmp_path / "whole", loop), whole))

    class Signals(Watch):
        def step(self, record: StepRecord) -> None:
            Watch.step(self, record)
            if record.step == stop:
                signal.raise_signal(signal.SIGTERM)

    given = settings(tmp_path / "parts", loop)
    first, second = Signals(), Watch()
    outcome = run(given, make_parts(given, first))
    assert (outcome.end, outcome.signal) == (End.STOPPED, signal.SIGTERM)
    assert outcome.step == stop + 1, "the step at work is finished"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run(given, make_parts(given, second)).end is End.FINISHED
    assert second.begun == [stop + 1]
    second.steps[:0], second.evaluations[:0] = first.steps, first.evaluations
    assert loss_lines(second) == loss_lines(whole)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    class Impatient(Watch):
        def step(self, record: StepRecord) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    given = settings(tmp_path, LoopSettings(3, batch=2))
    watch = Impatient()
    with pytest.raises(KeyboardInterrupt):
        run(given, make_parts(given, watch))
    assert watch.closed == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_stops_when_evaluations_get_no_better(tmp_path: Path) -> None:
    optimizer = OptimizerSettings(learning_rate=1.0, curve=RateCurve.CONSTANT)
    given = settings(tmp_path, LoopSettings(500, batch=4, evaluate_every=2, patience=3), optimizer)
    watch = Watch()
    outcome = run(given, make_parts(given, watch))
    assert outcome.end is End.EARLY
    assert outcome.step < 500
    assert [one.best for one in watch.evaluations[-4:]] == [True, False, False, False]
    assert outcome.best_step == watch.evaluations[-4].step
    assert outcome.best is not None, "the best stays, however many came after it"
    again = Watch()
    assert run(given, make_parts(given, again)).end is End.EARLY
    assert again.steps == []


def test_nan_goes_back_and_passes_the_batch_by(tmp_path: Path) -> None:
    given = settings(tmp_path, LoopSettings(20, batch=4, checkpoint_every=5))
    watch = Watch()
    outcome = run(given, make_parts(given, watch, stream=Stream(0, bad=frozenset({8}))))
    assert (outcome.end, outcome.step) == (End.FINISHED, 20)
    (record,) = watch.rollbacks
    assert (record.step, record.to, record.left) == (7, 5, 1)
    assert "loss is nan" in record.reason
    assert [one.step for one in watch.steps] == [*range(1, 8), *range(6, 21)]
    assert all(math.isfinite(one.loss) for one in watch.steps)
    losses = [one.loss for one in watch.steps]
    assert losses[7] != losses[5], "the steps are repeated with other data"


def test_nan_before_the_first_checkpoint_goes_back_to_the_start(tmp_path: Path) -> None:
    given = settings(tmp_path, LoopSettings(3, batch=4))
    watch = Watch()
    assert run(given, make_parts(given, watch, stream=Stream(0, bad=frozenset({2})))).step == 3
    assert (watch.rollbacks[0].step, watch.rollbacks[0].to) == (1, 0)


def test_it_gives_up_after_so_many_times(tmp_path: Path) -> None:
    given = settings(tmp_path, LoopSettings(20, batch=4, rollbacks=2))
    watch = Watch()
    with pytest.raises(TrainingError, match=r"step 0: the loss is nan, after 2 times .*lower optimizer.learning_rate"):
        run(given, make_parts(given, watch, stream=Stream(0, bad=frozenset(range(1, 99)))))
    assert len(watch.rollbacks) == 2
    assert watch.closed == 1


class _Overflow(LeastSquares):
    """Its gradients are beyond float32 once."""

    def accumulate(self, inputs):  # type: ignore[no-untyped-def]
        losses = super().accumulate(inputs)
        if self.calls == 4:
            self.store.gradient("b")[0] = np.inf
        return losses


def test_gradients_that_are_not_finite_go_back_too(tmp_path: Path) -> None:
    given = settings(tmp_path, LoopSettings(6, batch=4, checkpoint_every=2))
    watch = Watch()
    parts = make_parts(given, watch)
    run(given, dataclasses.replace(parts, engine=_Overflow(parts.store)))
    assert [(one.step, one.to) for one in watch.rollbacks] == [(3, 2)]
    assert "norm of the gradients is inf" in watch.rollbacks[0].reason
    assert np.isfinite(parts.store.values).all()


def test_values_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    given = settings(tmp_path, LoopSettings(6, batch=4))
    parts = make_parts(given, Watch())
    parts.store.value("w")[0, 0] = np.nan
    with pytest.raises(TrainingError, match="before the first step a trained value is not finite"):
        run(given, parts)
    assert parts.checkpoints.paths() == []

    class Breaks(Watch):
        def step(self, record: StepRecord) -> None:
            Watch.step(self, record)
            if len(self.steps) == 4:
                parts.store.value("b")[0] = np.inf

    watch = Breaks()
    parts = make_parts(settings(tmp_path / "b", LoopSettings(6, batch=4, checkpoint_every=2)), watch)
    run(settings(tmp_path / "b", LoopSettings(6, batch=4, checkpoint_every=2)), parts)
    assert [(one.step, one.to) for one in watch.rollbacks] == [(4, 2)]
    assert watch.rollbacks[0].reason == "a trained value is not finite"


def test_validation_without_labels_is_refused(tmp_path: Path) -> None:
    given = settings(tmp_path, LoopSettings(1, batch=4))
    with pytest.raises(InputError, match=r"data\.validation has no tokens to predict"):
        run(given, make_parts(given, Watch(), validation=Validation(0)))


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    given = settings(tmp_path, LoopSettings(4, batch=4))
    run(given, make_parts(given, Watch()))
    for name, change in {
        "optimizer.learning_rate is 0.5, and was 0.02": {"optimizer": OptimizerSettings(learning_rate=0.5)},
        "loop.batch is 8, and was 4": {"loop": LoopSettings(4, batch=8)},
        "loop.steps is 9, and was 4": {"loop": LoopSettings(9, batch=4)},
        "seed is 5, and was 0": {"seed": 5},
    }.items():
        other = dataclasses.replace(given, **change)
        if "optimizer" in change:
            other = dataclasses.replace(other, optimizer=dataclasses.replace(given.optimizer, learning_rate=0.5))
        watch = Watch()
        with pytest.raises(InputError, match=name):
            run(other, make_parts(other, watch))
        assert watch.steps == []
    more = dataclasses.replace(given, loop=LoopSettings(4, batch=4, keep=5, evaluate_every=2, patience=1))
    assert run(more, make_parts(more, Watch())).end is End.FINISHED


def test_a_run_whose_rate_stays_may_be_made_longer(tmp_path: Path) -> None:
    optimizer = OptimizerSettings(learning_rate=0.01, curve=RateCurve.CONSTANT)
    short = settings(tmp_path / "a", LoopSettings(4, batch=4), optimizer)
    run(short, make_parts(short, Watch()))
    long = dataclasses.replace(short, loop=LoopSettings(9, batch=4))
    watch, whole = Watch(), Watch()
    run(long, make_parts(long, watch))
    other = dataclasses.replace(long, output=tmp_path / "b")
    run(other, make_parts(other, whole))
    assert [one.loss for one in watch.steps] == [one.loss for one in whole.steps[4:]]


class _Both:
    """Two processes that do the same: sums are twice what each has."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.size = 2

    def sum(self, array: np.ndarray) -> None:
        array *= 2

    def sum_scalars(self, values: list[float]) -> list[float]:
        return [2 * value for value in values]


def test_processes_share_losses_and_only_the_first_writes(tmp_path: Path) -> None:
    alone, shared = Watch(), Watch()
    given = settings(tmp_path / "a", LoopSettings(3, batch=4))
    run(given, make_parts(given, alone))
    both = settings(tmp_path / "b", LoopSettings(3, batch=4))
    run(both, make_parts(both, shared, processes=_Both(0)))
    # The same half twice is the whole twice over twice as many tokens.
    np.testing.assert_allclose([one.loss for one in shared.steps], [one.loss for one in alone.steps], rtol=1e-6)
    assert shared.steps[0].positions == 2 * alone.steps[0].positions
    other = settings(tmp_path / "c", LoopSettings(3, batch=4))
    run(other, make_parts(other, Watch(), processes=_Both(1)))
    assert not (tmp_path / "c").exists()


def test_processes_must_find_the_same_checkpoint(tmp_path: Path) -> None:
    given = settings(tmp_path, LoopSettings(3, batch=4))
    run(given, make_parts(given, Watch()))

    class OtherIsBehind(_Both):
        def sum_scalars(self, values: list[float]) -> list[float]:
            return [value + other for value, other in zip(values, [-1.0, 1.0], strict=True)]

    with pytest.raises(TrainingError, match="not all processes find the same latest checkpoint"):
        run(given, make_parts(given, Watch(), processes=OtherIsBehind(0)))


def test_the_teacher_is_asked_for_every_part(tmp_path: Path) -> None:
    asked: list[tuple[int, ...]] = []

    def teacher(ids: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(ids.shape)
        return {"teacher.logits": np.zeros((*ids.shape, 3), np.float32)}

    given = settings(tmp_path, LoopSettings(1, batch=4))
    run(given, make_parts(given, Watch(), teacher=teacher, micro_batch=2, validation=None))
    assert asked == [(2, 6), (2, 6)]
    asked.clear()
    given = settings(tmp_path / "evaluated", LoopSettings(1, batch=4))
    run(given, make_parts(given, Watch(), teacher=teacher))
    assert len(asked) == 1, "an evaluation asks no teacher"
