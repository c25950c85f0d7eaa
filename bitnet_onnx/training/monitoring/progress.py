"""A run on one line of a terminal, or a line now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bitnet_onnx.training.graph.options import Term
from bitnet_onnx.training.records import CheckpointRecord, EvaluationRecord, RollbackRecord, StepRecord

#: Of the mean that is shown: about the last 10 steps.
_DECAY = 0.9
#: Columns that bar, perplexity and speed need besides step, loss and time.
_WIDE = 100

#: Takes what is done now, how much of it, and of how much.
Report = Callable[[str, int, int], None]


@contextmanager
def stage_bar(console: Console | None) -> Iterator[Report | None]:
    """A bar of what comes before the first step; None where nobody looks at a terminal."""
    if console is None or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield report


class ProgressLine:
    """Shows step, loss, perplexity, tokens a second and the time that is left.

    Args:
        console: a bar where it is a terminal; elsewhere a line every `interval` seconds.
        steps: of the run.
        interval: seconds between two lines.
        clock: gives seconds.
    """

    def __init__(
        self, console: Console, steps: int, *, interval: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._steps = steps
        self._interval = interval
        self._clock = clock
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._begun = self._spoken = 0.0
        self._first = 0
        self._means: dict[str, float] = {}

    def begin(self, step: int) -> None:
        """Show the bar, and where the run goes on."""
        if 0 < step < self._steps:
            self._say(f"step {step}/{self._steps}: the run goes on from its checkpoint")
        self._begun, self._first = self._clock(), step
        self._spoken = -math.inf
        self._means = {}
        if self._console.is_terminal:
            bar = (BarColumn(bar_width=20),) if self._is_wide() else ()
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                *bar,
                TextColumn("{task.description}"),
                TimeRemainingColumn(elapsed_when_finished=True),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=self._steps, completed=step)
            self._bar.start()

    def step(self, record: StepRecord) -> None:
        """Move on."""
        self._mean("loss", record.loss)
        self._mean("cross_entropy", record.terms.get(Term.CROSS_ENTROPY, math.nan))
        self._mean("seconds", record.seconds)
        self._mean("positions", record.positions)
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, description=self._figures())
            return
        now = self._clock()
        if now - self._spoken >= self._interval or record.step == self._steps:
            self._spoken = now
            done = record.step - self._first
            left = (now - self._begun) / done * (self._steps - record.step) if done > 0 else 0.0
            self._say(f"step {record.step}/{self._steps}: {self._figures()}, {_duration(left)} left")

    def evaluation(self, record: EvaluationRecord) -> None:
        """A line that stays."""
        best = ", the best so far" if record.best else ""
        perplexity = f"{record.perplexity:.4g}"
        self._say(f"step {record.step}/{self._steps}: validation loss {record.loss:.4f}, perplexity {perplexity}{best}")

    def checkpoint(self, record: CheckpointRecord) -> None:
        """Nothing: it is as it should be."""

    def rollback(self, record: RollbackRecord) -> None:
        """A line that stays."""
        self._say(f"step {record.step}: {record.reason}; back to step {record.to}, rollbacks left: {record.left}")
        self._means = {}
        if self._bar is not None:
            self._bar.update(self._task, completed=record.to)

    def close(self) -> None:
        """Let go of the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _mean(self, name: str, value: float) -> None:
        before = self._means.get(name, value)
        self._means[name] = _DECAY * before + (1 - _DECAY) * value

    def _figures(self) -> str:
        means = self._means
        if self._bar is not None and not self._is_wide():
            return f"loss {means['loss']:.4f}"
        speed = means["positions"] / means["seconds"] if means["seconds"] else 0.0
        exponent = means["cross_entropy"]
        perplexity = "" if math.isnan(exponent) else f", perplexity {math.exp(min(exponent, 700)):.4g}"
        return f"loss {means['loss']:.4f}{perplexity}, {speed:,.0f} tokens/s"

    def _is_wide(self) -> bool:
        return self._console.width >= _WIDE

    def _say(self, line: str) -> None:
        say(self._console, line)


def say(console: Console, line: str) -> None:
    """Print a line as it is; a terminal breaks it between words."""
    console.print(line, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
