"""The loop: steps, evaluations, checkpoints, and the ways back and out."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bitnet_onnx.errors import TrainingError
from bitnet_onnx.metrics import perplexity
from bitnet_onnx.training._run_state import RunState
from bitnet_onnx.training._step import StepLosses, accumulate, validate
from bitnet_onnx.training._stopping import StopRequest, stop_on_signals
from bitnet_onnx.training.config_file import flat
from bitnet_onnx.training.optimizers.gradient_norm import GradientNorm, clip_scale
from bitnet_onnx.training.parts import Parts
from bitnet_onnx.training.records import End, EvaluationRecord, Monitor, RollbackRecord, StepRecord
from bitnet_onnx.training.resumption import check_same_run
from bitnet_onnx.training.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        end: why.
        step: steps done.
        best_loss: least loss of an evaluation, nats a token.
        best_step: when that was.
        best: the checkpoint of it, if there is one.
        signal: that stopped it; of another process: SIGTERM's number.
    """

    end: End
    step: int
    best_loss: float | None
    best_step: int
    best: Path | None
    signal: int | None = None


def run(settings: TrainingSettings, parts: Parts) -> Outcome:
    """Train until the steps are done, evaluations get no better, or a signal asks for an end.

    The run goes on from the latest checkpoint that is sound, if its directory has any; at one thread of the engine,
    with the same losses bit for bit as if it had never stopped. SIGINT, SIGTERM and SIGHUP write a checkpoint at the
    end of the step. The checkpoint of the start is what the first steps go back to.

    Args:
        settings: of the run.
        parts: what it is made of.

    Raises:
        InputError: the settings are not those that the checkpoints were made with.
        CheckpointError: there are checkpoints, and none is sound.
        TrainingError: numbers did not stay finite, or a checkpoint cannot be written.
    """
    try:
        with stop_on_signals() as stop:
            return _Run(settings, parts, stop).go()
    finally:
        for monitor in parts.monitors:
            monitor.close()


class _NotFiniteError(Exception):
    """A number that must be finite is not; the text says which."""


class _Run:
    def __init__(self, settings: TrainingSettings, parts: Parts, stop: StopRequest) -> None:
        self._settings = settings
        self._loop = settings.loop
        self._parts = parts
        self._stop = stop
        self._state = RunState()
        self._norm = GradientNorm(parts.store.size)

    def go(self) -> Outcome:
        try:
            self._begin()
            while True:
                ended = self._ended()
                if ended is not None:
                    return self._outcome(ended)
                try:
                    if self._advance():
                        return self._outcome(End.STOPPED)
                except _NotFiniteError as error:
                    self._go_back(str(error))
        finally:
            self._norm.close()

    def _begin(self) -> None:
        saved = self._parts.checkpoints.settings()
        if saved is not None:
            check_same_run(saved, flat(self._settings), str(self._settings.output))
        state = self._restored()
        if state is not None:
            self._parts.stream.restore(state.data)
            self._state = state
        self._tell(lambda monitor: monitor.begin(self._state.step))
        if state is None:
            try:
                self._save(best=False)
            except _NotFiniteError as error:
                raise TrainingError(f"before the first step {error}: what training starts from is broken") from None

    def _restored(self) -> RunState | None:
        """The latest checkpoint, which all processes must have read before one of them may write another."""
        state = self._parts.checkpoints.restore(self._parts.store, self._parts.optimizer)
        step = -1.0 if state is None else float(state.step)
        processes = self._parts.processes
        # Equal steps, and not only an equal sum: the mean of squares is the square of the mean.
        total, squares = processes.sum_scalars([step, step * step])
        if total != processes.size * step or squares != processes.size * step * step:
            raise TrainingError(f"{self._settings.output}: not all processes find the same latest checkpoint there")
        return state

    def _ended(self) -> End | None:
        if self._state.step >= self._loop.steps:
            return End.FINISHED
        if self._loop.patience and self._state.waiting >= self._loop.patience:
            return End.EARLY
        return None

    def _advance(self) -> bool:
        """One step and what is due after it; whether the run is to stop."""
        begun = time.perf_counter()
        step = self._state.step
        losses = accumulate(self._parts, self._loop.batch, step, stopping=self._stop.signal is not None)
        if not math.isfinite(losses.loss):
            raise _NotFiniteError(f"the loss is {losses.loss}")
        norm = self._norm(self._parts.store.gradients)
        if not math.isfinite(norm):
            raise _NotFiniteError(f"the norm of the gradients is {norm}")
        rate = self._parts.schedules.rate(step)
        scale = clip_scale(norm, self._settings.optimizer.clip)
        self._parts.optimizer.step(rate, scale)
        self._state = replace(
            self._state,
            step=step + 1,
            optimizer_steps=self._parts.optimizer.steps,
            total_positions=self._state.total_positions + losses.positions,
        )
        record = self._record(step, losses, rate=rate, norm=norm, clipped=scale != 1, begun=begun)
        self._tell(lambda monitor: monitor.step(record))
        last = self._state.step == self._loop.steps
        better = (_due(self._state.step, self._loop.evaluate_every) or last) and self._evaluate()
        if better or losses.stopping or last or _due(self._state.step, self._loop.checkpoint_every) or self._ended():
            self._save(best=better)
        return losses.stopping and self._ended() is None

    def _record(
        self, step: int, losses: StepLosses, *, rate: float, norm: float, clipped: bool, begun: float
    ) -> StepRecord:
        strength = self._parts.schedules.strength(step)
        return StepRecord(
            step=self._state.step,
            loss=losses.loss,
            terms={str(term): value for term, value in losses.terms.items()},
            weights={str(term): value for term, value in self._parts.schedules.term_weights(step).items()},
            rate=rate,
            strength=() if strength is None else tuple(float(value) for value in strength),
            gradient_norm=norm,
            clipped=clipped,
            tokens=losses.tokens,
            positions=losses.positions,
            total_positions=self._state.total_positions,
            seconds=time.perf_counter() - begun,
        )

    def _evaluate(self) -> bool:
        """Evaluate where there is data for it, and tell whether it is the best so far."""
        if self._parts.validation is None:
            return False
        at_once = self._parts.micro_batch or self._loop.batch
        found = validate(self._parts, at_once, self._loop.evaluation_windows)
        if not math.isfinite(found.loss):
            raise _NotFiniteError(f"the evaluation's loss is {found.loss}")
        best = self._state.best_loss
        better = best is None or found.loss < best
        if better:
            self._state = replace(self._state, best_loss=found.loss, best_step=self._state.step, waiting=0)
        else:
            self._state = replace(self._state, waiting=self._state.waiting + 1)
        record = EvaluationRecord(
            self._state.step, found.loss, perplexity(found.loss), found.tokens, better, found.seconds
        )
        self._tell(lambda monitor: monitor.evaluation(record))
        return better

    def _save(self, *, best: bool) -> None:
        """Write a checkpoint in the process of rank 0; the others wait for it."""
        if not math.isfinite(self._norm(self._parts.store.values)):
            raise _NotFiniteError("a trained value is not finite")
        self._state = replace(self._state, data=self._parts.stream.state())
        if self._parts.processes.rank == 0:
            record = self._parts.checkpoints.save(self._parts.store, self._parts.optimizer, self._state, best=best)
            self._tell(lambda monitor: monitor.checkpoint(record))
        self._parts.processes.sum_scalars([0.0])

    def _go_back(self, reason: str) -> None:
        """Take the last checkpoint, and go on with the data behind the batch that went wrong."""
        step, done = self._state.step, self._state.rollbacks
        advice = "lower optimizer.learning_rate or optimizer.clip"
        if done >= self._loop.rollbacks:
            raise TrainingError(f"step {step}: {reason}, after {done} times of going back; {advice}")
        state = self._restored()
        if state is None:
            raise TrainingError(f"step {step}: {reason}, and there is no checkpoint to go back to; {advice}")
        self._state = replace(state, rollbacks=done + 1)
        record = RollbackRecord(step, state.step, reason, self._loop.rollbacks - done - 1)
        self._tell(lambda monitor: monitor.rollback(record))

    def _tell(self, what: Callable[[Monitor], None]) -> None:
        for monitor in self._parts.monitors:
            what(monitor)

    def _outcome(self, end: End) -> Outcome:
        return Outcome(
            end,
            self._state.step,
            self._state.best_loss,
            self._state.best_step,
            self._parts.checkpoints.best(),
            (self._stop.signal or signal.SIGTERM) if end is End.STOPPED else None,
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
