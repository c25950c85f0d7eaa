"""How many tokens a second does a full batch decode, and what is it beside the graph that takes time?

    python -P -m bitnet_onnx.benchmarks.serving.step PACKAGE --out step.json

Ours is a step of `BatchSession`. `bare graph` is ONNX Runtime alone on buffers of as many rows, with all inputs bound
beforehand: what no loop around it can beat. `one sequence` is a step of `DecoderSession`, for one row.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import click
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from rich.console import Console

from bitnet_onnx.benchmarks import machine
from bitnet_onnx.benchmarks.results import OURS, Comparison, Report
from bitnet_onnx.benchmarks.tables import show
from bitnet_onnx.benchmarks.timing import Candidate, interleave, timed
from bitnet_onnx.errors import InputError
from bitnet_onnx.package_format import LOGITS_START
from bitnet_onnx.runtime.devices import auto_select_device
from bitnet_onnx.runtime.engine.batch_session import BatchSession, Sequence
from bitnet_onnx.runtime.memory import HybridMemoryPool, default_budget
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.session import DecoderSession

BARE = "bare graph"
SINGLE = "one sequence"
_BINDINGS = 20
#: The threads of another session that ran before spin for a while.
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What to measure.

    Attributes:
        rows: sizes of the batch.
        context: tokens that every row holds before the first step.
        steps: steps of a run.
        rounds: runs of each candidate.
        threads: threads of one operator.
    """

    rows: tuple[int, ...] = (1, 2, 4, 8, 16)
    context: int = 64
    steps: int = 8
    rounds: int = 25
    threads: int = 2


def run(path: Path, settings: StepSettings, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Measure every size of batch.

    Raises:
        PackageError: `path` is no package.
        InputError: the context of the model is too short, or memory for so many rows is not to be had.
    """
    package = PackageInfo.open(path)
    total = settings.context + settings.steps
    if total > package.architecture.context_length:
        raise InputError(f"{path}: its context is shorter than the {total} tokens of the benchmark")
    device = auto_select_device()
    memory = HybridMemoryPool(default_budget())
    batch = BatchSession(package, device, memory, threads=settings.threads, max_batch=max(settings.rows))
    alone = DecoderSession(package, device, threads=settings.threads)
    comparisons, parts = [], []
    for rows in settings.rows:
        progress(f"{rows} rows")
        sequences = _open(batch, rows, settings)
        candidates: dict[str, Candidate] = {
            OURS: _ours(batch, sequences, settings),
            BARE: timed(partial(_Bare(batch, rows, total, settings.steps).run, settings.steps)),
        }
        if rows == 1:
            candidates[SINGLE] = _single(alone, settings)
        samples = interleave(candidates, rounds=settings.rounds)
        comparisons.append(Comparison(f"decode {rows}", settings.threads, samples, tokens=rows * settings.steps))
        for sequence in sequences:
            batch.close(sequence)
        ours, bare = samples[OURS], samples[BARE]
        between = median(a - b for a, b in zip(ours.seconds, bare.seconds, strict=True)) / settings.steps
        parts.append(
            {
                "rows": rows,
                "graph_us": 1e6 * bare.median / settings.steps,
                "around_the_graph_us": 1e6 * between,
                "new_binding_us": 1e6 * _new_binding(batch, rows),
                "share_of_bare": bare.ratio_to(ours),
            }
        )
    notes = (
        f"A run is {settings.steps} steps behind {settings.context} tokens in each row.",
        "A binding is made when a range of slots is decoded for the first time, and kept.",
    )
    facts: dict[str, object] = {"parts": parts, "memory_by_owner": memory.report().by_owner}
    return Report("serving_step", {"package": path.name, **asdict(settings)}, tuple(comparisons), facts, notes)


def _open(batch: BatchSession, rows: int, settings: StepSettings) -> list[Sequence]:
    """Sequences that hold a prompt."""
    total = settings.context + settings.steps
    sequences = [sequence for sequence in (batch.open(total) for _ in range(rows)) if sequence is not None]
    if len(sequences) < rows:
        raise InputError(f"no memory for {rows} sequences of {total} tokens; measure fewer rows")
    prompt = _ids(settings.context, batch.vocab_size)
    for sequence in sequences:
        for start in range(0, len(prompt), batch.prefill_chunk):
            batch.prefill(sequence, prompt[start : start + batch.prefill_chunk], logits=False)
    return sequences


def _ours(batch: BatchSession, sequences: list[Sequence], settings: StepSettings) -> Candidate:
    ids = _ids(len(sequences), batch.vocab_size)

    def steps() -> float:
        time.sleep(_PAUSE_S)
        batch.decode(sequences, ids)
        for sequence in sequences:
            batch.truncate(sequence, settings.context)
        started = time.perf_counter()
        for _ in range(settings.steps):
            batch.decode(sequences, ids)
        seconds = time.perf_counter() - started
        for sequence in sequences:
            batch.truncate(sequence, settings.context)
        return seconds

    return steps


def _single(session: DecoderSession, settings: StepSettings) -> Candidate:
    cache = session.new_cache()
    cache.reserve(settings.context + settings.steps)
    session.step(_ids(settings.context, 2), cache)
    ids = _ids(1, 2)

    def steps() -> float:
        time.sleep(_PAUSE_S)
        session.step(ids, cache)
        cache.truncate(settings.context)
        started = time.perf_counter()
        for _ in range(settings.steps):
            session.step(ids, cache)
        seconds = time.perf_counter() - started
        cache.truncate(settings.context)
        return seconds

    return steps


class _Bare:
    """The graph with everything bound, behind as many tokens as the steps of a run have in the mean."""

    def __init__(self, batch: BatchSession, rows: int, total: int, steps: int) -> None:
        graph = batch._graph
        sizes = graph.architecture
        self._session = graph.session
        self._binding = graph.session.io_binding()
        self._values: list[ort.OrtValue] = []  # keeps what is bound
        shape = (rows, sizes.num_key_value_heads, total, sizes.head_dim)
        for layer in range(sizes.num_hidden_layers):
            for part in ("key", "value"):
                value = self._value(np.ones(shape, np.float32))  # zeros would be one page of memory, many times
                self._binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", value)
                self._binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
        inputs = {
            "input_ids": np.array(_ids(rows, sizes.vocab_size), np.int64)[:, np.newaxis],
            "attention_mask": np.ones((rows, total - steps // 2), np.int64),
        }
        if graph.restricts_logits:
            inputs[LOGITS_START] = np.zeros(1, np.int64)
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
        self._binding.bind_ortvalue_output("logits", self._value(np.empty((rows, 1, sizes.vocab_size), np.float32)))

    def _value(self, array: npt.NDArray[np.float32]) -> ort.OrtValue:
        self._values.append(ort.OrtValue.ortvalue_from_numpy(array))
        return self._values[-1]

    def run(self, steps: int) -> None:
        """So many steps."""
        for _ in range(steps):
            self._session.run_with_iobinding(self._binding)


def _new_binding(batch: BatchSession, rows: int) -> float:
    """Seconds to bind the buffers of a range of slots that was not decoded before."""

    def bind() -> None:
        batch._bindings.clear()
        batch._binding(0, rows)

    return median(timed(bind)() for _ in range(_BINDINGS))


def _ids(count: int, vocab_size: int) -> list[int]:
    return [(7 + 31 * index) % vocab_size for index in range(count)]


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--rows", type=click.IntRange(1, 1024), multiple=True, default=(1, 2, 4, 8, 16), show_default=True)
@click.option("--context", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens before the steps.")
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True, help="Steps of a run.")
@click.option("--rounds", type=click.IntRange(min=1), default=25, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=machine.physical_cores, show_default="all cores")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    package: Path, rows: tuple[int, ...], context: int, steps: int, rounds: int, threads: int, out: Path | None
) -> None:
    """Measure decode steps of PACKAGE with several rows."""
    width = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    report = run(package, StepSettings(rows, context, steps, rounds, threads), console.print)
    show(report, console)
    if out is not None:
        report.write(out)


if __name__ == "__main__":
    main()
