"""What a run is put together from, and what the loop asks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.checkpoints import Checkpoints
from bitnet_onnx.training.engines.engine import GradientEngine
from bitnet_onnx.training.optimizers.optimizer import Optimizer
from bitnet_onnx.training.parallel import Collective
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.records import Monitor
from bitnet_onnx.training.schedules import Schedules

TokenArray = npt.NDArray[np.int64]


class Batch(Protocol):
    """Sequences of one step."""

    @property
    def input_ids(self) -> TokenArray:
        """int64 `[B, T]`."""
        ...

    @property
    def labels(self) -> TokenArray:
        """int64 `[B, T]`: the token behind each, or `settings.IGNORED`."""
        ...


class Stream(Protocol):
    """Training data without end."""

    def next(self, batch: int) -> Batch:
        """This process's part of the next `batch` sequences."""
        ...

    def state(self) -> dict[str, object]:
        """Where it stands, as JSON values: the same in all processes."""
        ...

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on there.

        Raises:
            InputError: it is a place in other data.
        """
        ...


class Validation(Protocol):
    """Data to evaluate with, always the same."""

    def batches(self, batch: int, *, limit: int) -> Iterator[Batch]:
        """This process's part of at most `limit` sequences, `batch` at once."""
        ...


#: From int64 `[B, T]` to the inputs of the training graph that hold what the teacher says.
Teacher = Callable[[TokenArray], Mapping[str, FloatArray]]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is put together from; who made it closes it, but for the monitors.

    Attributes:
        engine: computes gradients into the store.
        store: what is trained, filled with the values that it starts from.
        optimizer: moves it.
        schedules: what changes over the run.
        stream: of training data.
        validation: None where there is none.
        checkpoints: of this run.
        processes: that share the work.
        teacher: None where no loss reads it.
        monitors: watch; in the process of rank 0 only.
        micro_batch: sequences at once; 0 is all of a step.
    """

    engine: GradientEngine
    store: ParameterStore
    optimizer: Optimizer
    schedules: Schedules
    stream: Stream
    validation: Validation | None
    checkpoints: Checkpoints
    processes: Collective
    teacher: Teacher | None = None
    monitors: tuple[Monitor, ...] = ()
    micro_batch: int = 0
