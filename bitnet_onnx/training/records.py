"""What a run tells those who watch it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of the optimizer, over all processes.

    Attributes:
        step: steps done with this one; the first is 1.
        loss: weighted sum of the terms.
        terms: each before it is weighted, by the name of its `Term`.
        weights: of the terms in this step.
        rate: learning rate.
        strength: of quantization, for each group of layers; empty where nothing is quantized.
        gradient_norm: of all gradients together, before they were clipped.
        clipped: the norm was above the limit.
        tokens: labelled ones of this step.
        positions: tokens of this step, labelled or not.
        total_positions: of all steps so far, this one included.
        seconds: that the step took.
    """

    step: int
    loss: float
    terms: Mapping[str, float]
    weights: Mapping[str, float]
    rate: float
    strength: tuple[float, ...]
    gradient_norm: float
    clipped: bool
    tokens: int
    positions: int
    total_positions: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One pass over the validation data, fully quantized where the model is.

    Attributes:
        step: steps done.
        loss: cross entropy, nats a token.
        perplexity: its exponential.
        tokens: that were predicted.
        best: none before was better.
        seconds: that it took.
    """

    step: int
    loss: float
    perplexity: float
    tokens: int
    best: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A checkpoint that is complete.

    Attributes:
        step: steps done.
        path: its directory.
        best: it holds the best values so far.
        size: bytes.
        seconds: that it took.
    """

    step: int
    path: Path
    best: bool
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RollbackRecord:
    """The run went back because a number was not finite.

    Attributes:
        step: that went wrong.
        to: step of the checkpoint that was taken.
        reason: which number it was.
        left: times that this may still happen.
    """

    step: int
    to: int
    reason: str
    left: int


class End(enum.StrEnum):
    """Why a run stopped."""

    #: all steps are done
    FINISHED = "finished"
    #: evaluations got no better
    EARLY = "early"
    #: a signal asked for it
    STOPPED = "stopped"


class Monitor(Protocol):
    """Watches a run; only the process of rank 0 has any."""

    def begin(self, step: int) -> None:
        """Steps up to `step` are done; records of later ones, from a run that broke off, no longer hold."""
        ...

    def step(self, record: StepRecord) -> None:
        """A step is done; the store holds the new values, and still its gradients."""
        ...

    def evaluation(self, record: EvaluationRecord) -> None:
        """An evaluation is done."""
        ...

    def checkpoint(self, record: CheckpointRecord) -> None:
        """A checkpoint is written."""
        ...

    def rollback(self, record: RollbackRecord) -> None:
        """Records of steps after `record.to` no longer hold."""
        ...

    def close(self) -> None:
        """No record will follow; called however the run ends."""
        ...
