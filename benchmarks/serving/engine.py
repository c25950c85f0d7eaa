"""What does the batching engine cost over a bare loop, and what does its prompt cache save?

    python -P -m bitnet_onnx.benchmarks.serving.engine PACKAGE --tokens 128 --out engine.json

`bitnet` is the engine with so many answers at a time; `bare loop` steps the same session with as many rows. A repeated
prompt is read once without the prompt cache and once with what the first reading left in it.
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
from rich.console import Console

from bitnet_onnx.benchmarks import machine
from bitnet_onnx.benchmarks.results import OURS, Comparison, Report
from bitnet_onnx.benchmarks.tables import show
from bitnet_onnx.benchmarks.timing import Candidate, interleave, timed
from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.devices import auto_select_device
from bitnet_onnx.runtime.engine.batch_session import BatchSession
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.request import EngineRequest
from bitnet_onnx.runtime.memory import HybridMemoryPool, default_budget
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.prompts import PromptEncoder
from bitnet_onnx.runtime.sampling import SamplingParameters

BARE = "bare loop"
UNCACHED = "without prompt cache"


@dataclass(frozen=True, slots=True)
class EngineBenchmark:
    """What to measure.

    Attributes:
        rows: answers at a time.
        tokens: length of each answer.
        prompt: tokens of the repeated prompt.
        reading: tokens of the prompt that is read while answers run.
        rounds: runs of each candidate.
        threads: threads of one operator.
    """

    rows: tuple[int, ...] = (1, 16)
    tokens: int = 32
    prompt: int = 1000
    reading: int = 512
    rounds: int = 7
    threads: int = 2


def run(path: Path, settings: EngineBenchmark, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Measure throughput, the repeated prompt, and the gaps of running answers.

    Raises:
        PackageError: `path` is no package.
        InputError: the context of the model is too short.
    """
    prompts = PromptEncoder(PackageInfo.open(path))
    longest = max(settings.prompt, settings.reading) + settings.tokens
    if longest > prompts.package.architecture.context_length:
        raise InputError(f"{path}: its context is shorter than the {longest} tokens of the benchmark")
    memory = HybridMemoryPool(default_budget())
    most = max(settings.rows)
    session = BatchSession(
        prompts.package, auto_select_device(), memory, threads=settings.threads, max_batch=max(most, 9)
    )
    engine = Engine(session, prompts.tokenizer.decode, frozenset(), memory, EngineSettings(max_batch=max(most, 9)))
    comparisons = []
    for rows in settings.rows:
        progress(f"{rows} answers")
        candidates: dict[str, Candidate] = {
            OURS: timed(partial(_answer, engine, rows, settings.tokens)),
            BARE: timed(partial(_bare, session, rows, settings.tokens)),
        }
        samples = interleave(candidates, rounds=settings.rounds)
        comparisons.append(Comparison(f"{rows} answers", settings.threads, samples, tokens=rows * settings.tokens))
    progress("a repeated prompt")
    text = _ids(settings.prompt, session.vocab_size)
    tenants = iter(range(10**6))
    cached: dict[str, Candidate] = {
        OURS: timed(lambda: _first_token(engine, text, "repeated")),
        UNCACHED: timed(lambda: _first_token(engine, text, f"new {next(tenants)}")),
    }
    comparisons.append(Comparison("first token", settings.threads, interleave(cached, rounds=settings.rounds)))
    progress("gaps")
    facts: dict[str, object] = {"gaps": _gaps(engine, session, settings)}
    engine.close()
    notes = (
        f"Answers have {settings.tokens} tokens behind prompts of one; the first step of each is part of the time.",
        f"The repeated prompt has {settings.prompt} tokens; without prompt cache each reading has a tenant of its own.",
        f"Gaps are steps of 8 running answers while a prompt of {settings.reading} tokens is read in chunks.",
    )
    return Report("serving_engine", {"package": path.name, **asdict(settings)}, tuple(comparisons), facts, notes)


def _answer(engine: Engine, rows: int, tokens: int) -> None:
    parameters = SamplingParameters(max_new_tokens=tokens)
    for row in range(rows):
        engine.submit(EngineRequest((row + 1,), parameters))
    while engine.step():
        pass


def _bare(session: BatchSession, rows: int, tokens: int) -> None:
    sequences = [sequence for sequence in (session.open(tokens + 1) for _ in range(rows)) if sequence is not None]
    ids = list(range(1, len(sequences) + 1))
    for _ in range(tokens):
        ids = session.decode(sequences, ids).argmax(axis=-1).tolist()
    for sequence in sequences:
        session.close(sequence)


def _first_token(engine: Engine, prompt: tuple[int, ...], tenant: str) -> None:
    engine.submit(EngineRequest(prompt, SamplingParameters(max_new_tokens=1), tenant=tenant))
    while engine.step():
        pass


def _gaps(engine: Engine, session: BatchSession, settings: EngineBenchmark) -> dict[str, float]:
    """Seconds of a chunk alone, and of the slowest step of running answers while a prompt is read; medians."""
    chunk, slowest = [], []
    for turn in range(settings.rounds):
        sequence = session.open(settings.reading)
        if sequence is None:
            raise InputError("no memory for the prompt of the benchmark; measure a shorter one")
        part = _ids(min(session.prefill_chunk, settings.reading), session.vocab_size)
        started = time.perf_counter()
        session.prefill(sequence, part, logits=False)
        chunk.append(time.perf_counter() - started)
        session.close(sequence)
        for row in range(8):
            engine.submit(EngineRequest((row + 1,), SamplingParameters(max_new_tokens=settings.tokens)))
        for _ in range(9):
            engine.step()
        prompt = _ids(settings.reading, session.vocab_size)
        engine.submit(EngineRequest(prompt, SamplingParameters(max_new_tokens=1), tenant=f"gap {turn}"))
        steps = []
        for _ in range(settings.reading // session.prefill_chunk + 1):
            started = time.perf_counter()
            engine.step()
            steps.append(time.perf_counter() - started)
        slowest.append(max(steps))
        while engine.step():
            pass
    return {"chunk_s": median(chunk), "slowest_step_s": median(slowest)}


def _ids(count: int, vocab_size: int) -> tuple[int, ...]:
    return tuple((7 + 31 * index) % vocab_size for index in range(count))


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--rows", type=click.IntRange(1, 1024), multiple=True, default=(1, 16), show_default=True)
@click.option("--tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Length of an answer.")
@click.option("--prompt", type=click.IntRange(min=1), default=1000, show_default=True, help="The repeated prompt.")
@click.option("--reading", type=click.IntRange(min=1), default=512, show_default=True, help="Read while answers run.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=machine.physical_cores, show_default="all cores")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    package: Path,
    rows: tuple[int, ...],
    tokens: int,
    prompt: int,
    reading: int,
    rounds: int,
    threads: int,
    out: Path | None,
) -> None:
    """Measure the batching engine over PACKAGE."""
    width = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    report = run(package, EngineBenchmark(rows, tokens, prompt, reading, rounds, threads), console.print)
    show(report, console)
    if out is not None:
        report.write(out)


if __name__ == "__main__":
    main()
