"""What a training run takes, before it starts, and how it stays within a budget."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.memory import usable_bytes
from bitnet_onnx.training.engines._liveness import peak_bytes
from bitnet_onnx.training.engines.current import gradient_graph
from bitnet_onnx.training.settings import EngineName

if TYPE_CHECKING:
    import onnx_ir as ir

    from bitnet_onnx.training.graph.decoder import TrainingGraph

_BYTES: Final = 4
#: Python, its libraries and ONNX Runtime with an open graph; measured, as is the next.
_PROCESS: Final = 170 << 20
#: The process of onnxruntime-training.
_WORKER: Final = 100 << 20
#: Of the memory for activations: blocks of many sizes leave gaps between them.
_GAPS: Final = 1.15
#: Free memory that training leaves alone.
_RESERVE: Final = 0.1
_MEMINFO: Final = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that a run takes.

    Attributes:
        values: the parameters.
        gradients: one for each parameter.
        moments: of the optimizer.
        activations: values kept between the forward and the backward pass, at their peak.
        engine: processes and libraries.
        teacher: its parameters and what they compute; 0 without one.
    """

    values: int
    gradients: int
    moments: int
    activations: int
    engine: int
    teacher: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.values + self.gradients + self.moments + self.activations + self.engine + self.teacher

    def __str__(self) -> str:
        parts = {
            "parameters": self.values,
            "gradients": self.gradients,
            "optimizer": self.moments,
            "activations": self.activations,
            "teacher": self.teacher,
            "engine": self.engine,
        }
        return f"{megabytes(self.total)} (" + ", ".join(f"{k} {megabytes(v)}" for k, v in parts.items() if v) + ")"


@dataclass(frozen=True, slots=True)
class Plan:
    """How a step is cut.

    Attributes:
        micro_batch: sequences at once.
        recompute: compute each layer's values again in the backward pass.
        estimate: of the memory that this takes.
    """

    micro_batch: int
    recompute: bool
    estimate: MemoryEstimate


class MemoryModel:
    """Estimates for one training graph.

    Args:
        graph: what is trained.
        length: tokens of a window.
        moments: of the optimizer, for each parameter.
        engine: that runs the graph.
        teacher: a teacher's graph and the number of its parameters.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        length: int,
        *,
        moments: int = 2,
        engine: EngineName = EngineName.ONNXRUNTIME,
        teacher: tuple[ir.Model, int] | None = None,
    ) -> None:
        self._graph = graph
        self._length = length
        self._moments = moments
        self._engine = engine
        self._parameters = _BYTES * sum(map(math.prod, graph.parameters.values()))
        self._lines: dict[bool, tuple[int, int]] = {}
        self._teacher_line = (0, 0) if teacher is None else self._of_teacher(*teacher)

    def estimate(self, micro_batch: int, *, recompute: bool = False) -> MemoryEstimate:
        """What a run takes with so many sequences at once."""
        if recompute not in self._lines:
            self._lines[recompute] = _line(gradient_graph(self._graph, recompute=recompute), self._length)
        fixed, each = self._lines[recompute]
        # Measured: so much more than the liveness of values says, whatever the batch.
        fixed += self._parameters if recompute else 0
        start, slope = self._teacher_line
        return MemoryEstimate(
            values=self._parameters,
            gradients=self._parameters,
            moments=self._moments * self._parameters,
            activations=fixed + each * micro_batch,
            engine=_PROCESS + (_WORKER if self._engine is EngineName.ONNXRUNTIME_TRAINING else 0),
            teacher=start + slope * micro_batch,
        )

    def _of_teacher(self, model: ir.Model, parameters: int) -> tuple[int, int]:
        """Bytes of a teacher as a line over the micro-batch."""
        start, slope = _line(model, self._length)
        # What it says is the student's input, and stays until the step is done.
        said = sum(map(_width, model.graph.outputs))
        return _BYTES * parameters + start, slope + _BYTES * self._length * said

    def plan(self, batch: int, budget: int = 0, *, micro_batch: int = 0, recompute: bool | None = None) -> Plan:
        """The fastest way to do a step within a budget: the largest micro-batch, without recomputing where that fits.

        Args:
            batch: sequences of a step in this process.
            budget: bytes; 0 is what is free.
            micro_batch: as the user wants it; 0 leaves it open.
            recompute: as the user wants it; None leaves it open.

        Raises:
            InputError: nothing fits.
        """
        allowed = budget or free_bytes()
        choices = (False, True) if recompute is None else (recompute,)
        if self._engine is EngineName.ONNXRUNTIME_TRAINING or not self._graph.boundaries:
            choices = (False,)
        for choice in choices:
            if (size := self._largest(batch, allowed, micro_batch, recompute=choice)) is not None:
                return Plan(size, choice, self.estimate(size, recompute=choice))
        least = self.estimate(micro_batch or 1, recompute=choices[-1])
        raise InputError(
            f"training needs at least {least} and {megabytes(allowed)} {'are allowed' if budget else 'are free'}: "
            + _advice(least, recompute=choices[-1], micro_batch=micro_batch, length=self._length, engine=self._engine)
        )

    def _largest(self, batch: int, allowed: int, wanted: int, *, recompute: bool) -> int | None:
        """The largest micro-batch that fits, evened out over the batch."""

        def fits(size: int) -> bool:
            return self.estimate(size, recompute=recompute).total <= allowed

        if wanted:
            return wanted if fits(wanted) else None
        size = _last(fits, batch)
        # 8 sequences as 4 + 4, not as 5 + 3.
        return -(-batch // -(-batch // size)) if size else None


def free_bytes() -> int:
    """Memory that training may take: what the system says is available, within the limits of this process."""
    free = usable_bytes()
    if sys.platform == "linux":
        try:
            fields = dict(line.split(":", 1) for line in _MEMINFO.read_text("ascii").splitlines())
            free = min(free, int(fields["MemAvailable"].split()[0]) << 10)
        except (OSError, ValueError, KeyError, IndexError):
            pass
    return int(free * (1 - _RESERVE))


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{-(-size // (1 << 20))} MiB"


def _advice(least: MemoryEstimate, *, recompute: bool, micro_batch: int, length: int, engine: EngineName) -> str:
    if least.activations + least.teacher > least.values + least.gradients + least.moments:
        steps = [f"a shorter data.length than {length}"]
        if micro_batch > 1:
            steps.insert(0, f"a smaller engine.micro_batch than {micro_batch}")
        if not recompute:
            steps.insert(0, "engine.recompute = true")
        if engine is EngineName.ONNXRUNTIME_TRAINING:
            steps.insert(0, 'engine.name = "onnxruntime"')
        if least.teacher:
            steps.append("no teacher")
    else:
        steps = ["a smaller model", 'optimizer.name = "sgd"']
    return "take " + ", or ".join(steps)


def _line(model: ir.Model, length: int) -> tuple[int, int]:
    """Bytes of activations as a line over the micro-batch: what is always there, and what each sequence adds."""
    # Dimensions of 1 broadcast: they would say little of larger ones.
    two, three = (peak_bytes(model, {"batch_size": size, "sequence_length": length}) for size in (2, 3))
    each = max(three - two, 0)
    return int(max(two - 2 * each, 0) * _GAPS), int(each * _GAPS)


def _width(output: ir.Value) -> int:
    """Features of an output `[batch, length, features]`; 0 of any other."""
    shape = output.shape
    width = shape[2] if shape is not None and shape.rank() == 3 else 0
    return width if isinstance(width, int) else 0


def _last(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, if all below it do; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
