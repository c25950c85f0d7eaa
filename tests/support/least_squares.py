"""A training run without a graph: ternary least squares in numpy, with every part that the loop asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_onnx.training.checkpoints import Checkpoints
from bitnet_onnx.training.config_file import flat
from bitnet_onnx.training.graph.options import INPUT_IDS, LABELS, NORMALIZER, STRENGTH
from bitnet_onnx.training.optimizers.optimizer import make_optimizer
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.parts import Parts
from bitnet_onnx.training.records import CheckpointRecord, EvaluationRecord, RollbackRecord, StepRecord
from bitnet_onnx.training.schedules import Schedules
from bitnet_onnx.training.settings import (
    IGNORED,
    DataSettings,
    LoopSettings,
    ModelSettings,
    OptimizerSettings,
    TrainingSettings,
)

VOCABULARY, WIDTH = 50, 12
#: A token of which the engine makes NaN.
BAD = VOCABULARY
LENGTH = 6
Inputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tokens:
    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


def tokens(seed: int, number: int, batch: int, *, bad: bool = False) -> Tokens:
    random = np.random.default_rng((seed, number))
    ids = random.integers(0, VOCABULARY, (batch, LENGTH))
    labels = np.where(random.random((batch, LENGTH)) < 0.2, IGNORED, ids)
    if bad:
        ids[0, 0] = BAD
    return Tokens(ids, labels)


class LeastSquares:
    """`sum |W x - t|^2 / (2 normalizer)` over labelled tokens, with `W` as quantized as the strength says."""

    def __init__(self, store: ParameterStore) -> None:
        random = np.random.default_rng(9)
        self.store = store
        self.inputs = random.normal(size=(VOCABULARY + 1, WIDTH)).astype(np.float32)
        self.targets = self.inputs @ random.normal(size=(WIDTH, WIDTH)).astype(np.float32)
        self.strengths: list[float] = []
        self.calls = 0

    def accumulate(self, inputs: Inputs) -> dict[str, float]:
        self.calls += 1
        loss, error, x = self._run(inputs)
        self.store.gradient("w")[...] += error.T @ x / inputs[NORMALIZER]
        self.store.gradient("b")[...] += error.sum(axis=0) / inputs[NORMALIZER]
        return {"loss": loss, "loss.cross_entropy": loss}

    def evaluate(self, inputs: Inputs) -> dict[str, float]:
        self.strengths.append(float(inputs[STRENGTH].min()))
        loss, _, _ = self._run(inputs)
        return {"loss": loss, "loss.cross_entropy": loss}

    def close(self) -> None: ...

    def _run(self, inputs: Inputs) -> tuple[float, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        ids, labels = inputs[INPUT_IDS], inputs[LABELS]
        kept = labels != IGNORED
        x = self.inputs[ids[kept]]
        w = self.store.value("w")
        mean = np.maximum(np.abs(w).mean(), np.float32(1e-5))
        w = w + inputs[STRENGTH][0] * (np.clip(np.rint(w / mean), -1, 1) * mean - w)
        error = x @ w.T + self.store.value("b") - self.targets[ids[kept]]
        loss = float((error * error).sum() / (2 * inputs[NORMALIZER]))
        return float("nan") if (ids == BAD).any() else loss, error, x


@dataclass(slots=True)
class Stream:
    """Batches by their number; those in `bad` hold the bad token."""

    seed: int
    bad: frozenset[int] = frozenset()
    taken: int = 0

    def next(self, batch: int) -> Tokens:
        self.taken += 1
        return tokens(self.seed, self.taken, batch, bad=self.taken in self.bad)

    def state(self) -> dict[str, object]:
        return {"taken": self.taken}

    def restore(self, state: Mapping[str, object]) -> None:
        taken = state["taken"]
        assert isinstance(taken, int)
        self.taken = taken


@dataclass(frozen=True, slots=True)
class Validation:
    windows: int = 8

    def batches(self, batch: int, *, limit: int) -> Iterator[Tokens]:
        left = min(limit, self.windows)
        for number in range(0, left, batch):
            yield tokens(1000, number, min(batch, left - number))


@dataclass(slots=True)
class Watch:
    """Keeps what it is told."""

    begun: list[int] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    rollbacks: list[RollbackRecord] = field(default_factory=list)
    closed: int = 0

    def begin(self, step: int) -> None:
        self.begun.append(step)

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def evaluation(self, record: EvaluationRecord) -> None:
        self.evaluations.append(record)

    def checkpoint(self, record: CheckpointRecord) -> None:
        self.checkpoints.append(record)

    def rollback(self, record: RollbackRecord) -> None:
        self.rollbacks.append(record)

    def close(self) -> None:
        self.closed += 1


class Alone:
    rank = 0
    size = 1

    def sum(self, array: npt.NDArray[np.float32]) -> None: ...

    def sum_scalars(self, values: Any) -> list[float]:
        return list(values)


def settings(output: Path, loop: LoopSettings, optimizer: OptimizerSettings | None = None) -> TrainingSettings:
    return TrainingSettings(
        output,
        ModelSettings(source="anything"),
        DataSettings((Path("texts.txt"),)),
        loop,
        optimizer or OptimizerSettings(learning_rate=0.02, weight_decay=0.01),
    )


def new_store() -> ParameterStore:
    store = ParameterStore({"w": (WIDTH, WIDTH), "b": (WIDTH,)}, decayed=frozenset({"w"}))
    store.value("w")[...] = np.random.default_rng(3).normal(size=(WIDTH, WIDTH))
    return store


def make_parts(given: TrainingSettings, watch: Watch, **changes: Any) -> Parts:
    store = new_store()
    parts = Parts(
        engine=LeastSquares(store),
        store=store,
        optimizer=make_optimizer(given.optimizer, store, ternary=frozenset({"w"}), threads=1),
        schedules=Schedules.of(given),
        stream=Stream(given.seed),
        validation=Validation(),
        checkpoints=Checkpoints(given.output, settings=flat(given), keep=given.loop.keep),
        processes=Alone(),
        monitors=(watch,),
    )
    return replace(parts, **changes)


def loss_lines(watch: Watch) -> str:
    """All that steps and evaluations said but for the time, exactly."""
    steps = [[one.step, one.loss.hex(), one.gradient_norm.hex(), one.rate.hex()] for one in watch.steps]
    return json.dumps([steps, [[one.step, one.loss.hex()] for one in watch.evaluations]])
