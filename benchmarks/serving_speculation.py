"""What do guessed tokens save where texts repeat, and what do they cost where they do not?

    python -P benchmarks/serving_speculation.py PACKAGE --out benchmarks/results/serving_speculation.json

`bitnet` is the engine with `--speculate`, `without` the same engine over the same session without it. The clock runs
while answers are generated, after their prompts have been read. `--cpu-time` counts the time of the processor instead,
with one thread, for a machine that others use.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from bitnet_onnx.benchmarks import machine
from bitnet_onnx.benchmarks.results import OURS, Comparison, Report
from bitnet_onnx.benchmarks.tables import show
from bitnet_onnx.benchmarks.timing import Candidate, interleave
from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime.chat import Message
from bitnet_onnx.runtime.devices import auto_select_device
from bitnet_onnx.runtime.engine.batch_session import BatchSession
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.request import EngineRequest
from bitnet_onnx.runtime.memory import HybridMemoryPool, default_budget
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.prompts import PromptEncoder
from bitnet_onnx.runtime.sampling import SamplingParameters

WITHOUT = "without"
_PARAGRAPH = (
    "The harbour was quiet when Maria opened the shop. She set the bread on the counter, counted the coins in the "
    "drawer and wrote the date on the board. At nine the first boats came in, and with them the men who wanted coffee, "
    "rope and news of the storm. Maria sold them what she had and told them what she knew."
)
_FUNCTION = (
    "def mean(values):\n    total = 0\n    count = 0\n    for value in values:\n        total = total + value\n"
    "        count = count + 1\n    return total / count\n"
)
_NAMES = ("Anna", "Clara", "Helen", "Julia", "Laura", "Nora", "Rosa", "Vera")
_QUESTIONS = (
    "Write a short story about a dragon that is afraid of water.",
    "Explain how a bicycle stays upright.",
    "What is the difference between a virus and a bacterium?",
    "Give me advice on learning to cook.",
    "Why is the sky blue in the day and red in the evening?",
    "Describe a walk through an old town in winter.",
    "How does a refrigerator work?",
    "Tell me about the history of chess.",
)
#: Requests that make the model repeat its prompt, and such that do not.
KINDS: dict[str, tuple[str, ...]] = {
    "a name changed": tuple(f"Repeat this text with {name} instead of Maria:\n\n{_PARAGRAPH}" for name in _NAMES),
    "code changed": tuple(f"Write this code again with {n.lower()} for total:\n\n{_FUNCTION}" for n in _NAMES),
    "free text": _QUESTIONS,
}
#: As the chat page samples, so that free text does not run in circles.
_DRAWN = SamplingParameters(temperature=0.7, repetition_penalty=1.1)


@dataclass(frozen=True, slots=True)
class SpeculationBenchmark:
    """What to measure.

    Attributes:
        rows: answers at a time.
        tokens: most tokens of an answer.
        speculate: most tokens guessed at a time.
        rounds: runs of each candidate; each has seeds of its own.
        threads: threads of one operator.
        cpu_time: count the processor's time.
    """

    rows: tuple[int, ...] = (1, 4, 16)
    tokens: int = 96
    speculate: int = 8
    rounds: int = 5
    threads: int = 2
    cpu_time: bool = False


def run(path: Path, settings: SpeculationBenchmark, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Measure every kind of text with every number of rows.

    Raises:
        PackageError: `path` is no package.
        InputError: the answers are longer than the context of the model, or an option is out of range.
        BitnetOnnxError: an answer differed from the one without guesses.
    """
    prompts = PromptEncoder(PackageInfo.open(path))
    context = prompts.package.architecture.context_length
    requests = {kind: [_encode(prompts, text) for text in texts] for kind, texts in KINDS.items()}
    longest = max(len(ids) for each in requests.values() for ids in each) + settings.tokens
    if longest > context:
        raise InputError(f"{path}: its context of {context} tokens is shorter than the {longest} of the benchmark")
    most = max(settings.rows)
    memory = HybridMemoryPool(default_budget())
    session = BatchSession(
        prompts.package,
        auto_select_device(),
        memory,
        threads=settings.threads,
        max_batch=most,
        draft_tokens=settings.speculate,
    )
    engines = {
        name: Engine(
            session,
            prompts.tokenizer.decode,
            prompts.stop_ids,
            memory,
            EngineSettings(max_batch=most, speculate=speculate),
        )
        for name, speculate in ((OURS, settings.speculate), (WITHOUT, 0))
    }
    comparisons, guesses = [], []
    for kind, ids in requests.items():
        for rows in settings.rows:
            progress(f"{kind}, {rows} answers")
            play = _Play(ids, rows, settings, drawn=kind == "free text")
            before = engines[OURS].metrics()
            candidates: dict[str, Candidate] = {
                name: partial(play.run, name, engine) for name, engine in engines.items()
            }
            samples = interleave(candidates, rounds=settings.rounds)
            play.check()
            after = engines[OURS].metrics()
            runs = settings.rounds + 1
            comparisons.append(Comparison(f"{kind}, {rows}", settings.threads, samples))
            guesses.append(
                {
                    "case": f"{kind}, {rows}",
                    "drafted_tokens": (after.drafted_tokens - before.drafted_tokens) / runs,
                    "accepted_tokens": (after.accepted_tokens - before.accepted_tokens) / runs,
                    "generated_tokens": (after.generated_tokens - before.generated_tokens) / runs,
                    "steps": (after.decode_steps - before.decode_steps) / runs,
                }
            )
    for engine in engines.values():
        engine.close()
    notes = (
        f"Answers end after {settings.tokens} tokens or before; ids of both candidates are compared, and are equal.",
        "Texts that repeat are generated greedily, free text at a temperature of 0.7 and a repetition penalty of 1.1.",
        f"Seconds are those of the {'processor' if settings.cpu_time else 'clock'}, after prompts have been read.",
    )
    facts: dict[str, object] = {"guesses": guesses}
    return Report("serving_speculation", {"package": path.name, **asdict(settings)}, tuple(comparisons), facts, notes)


class _Play:
    """Some answers at a time to requests of one kind, the same for both candidates of a round."""

    def __init__(
        self, prompts: list[tuple[int, ...]], rows: int, settings: SpeculationBenchmark, *, drawn: bool
    ) -> None:
        self._prompts = prompts
        self._rows = rows
        self._settings = settings
        self._drawn = drawn
        self._answers: dict[str, list[tuple[int, ...]]] = {}

    def run(self, name: str, engine: Engine) -> float:
        """Seconds of one run."""
        clock = time.process_time if self._settings.cpu_time else time.perf_counter
        answers = self._answers.setdefault(name, [])
        streams = []
        for row in range(self._rows):
            seed = len(answers) + row
            parameters = SamplingParameters(
                max_new_tokens=self._settings.tokens,
                temperature=_DRAWN.temperature if self._drawn else 0.0,
                repetition_penalty=_DRAWN.repetition_penalty if self._drawn else 1.0,
                seed=seed,
            )
            streams.append(engine.submit(EngineRequest(self._prompts[seed % len(self._prompts)], parameters)))
        busy = engine.step()
        while busy and (engine.metrics().reading or engine.metrics().queue_length):
            busy = engine.step()
        started = clock()
        while busy:
            busy = engine.step()
        seconds = clock() - started
        answers += [stream.result(0).ids for stream in streams]
        return seconds

    def check(self) -> None:
        """Compares the answers of both candidates."""
        if self._answers[OURS] != self._answers[WITHOUT]:
            raise BitnetOnnxError("an answer with guessed tokens differs from the one without: this is a fault")


def _encode(prompts: PromptEncoder, text: str) -> tuple[int, ...]:
    """The request by the chat template, if there is one."""
    chat = prompts.package.chat_template is not None
    return tuple(prompts.encode([Message("user", text)] if chat else text))


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--rows", type=click.IntRange(1, 1024), multiple=True, default=(1, 4, 16), show_default=True)
@click.option("--tokens", type=click.IntRange(min=1), default=96, show_default=True, help="Most tokens of an answer.")
@click.option("--speculate", type=int, default=8, show_default=True, help="Most tokens guessed at a time.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=machine.physical_cores, show_default="all cores")
@click.option("--cpu-time", is_flag=True, help="Count the processor's time, with one thread.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    package: Path,
    rows: tuple[int, ...],
    tokens: int,
    speculate: int,
    rounds: int,
    threads: int,
    cpu_time: bool,
    out: Path | None,
) -> None:
    """Measure guessed tokens over PACKAGE."""
    width = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    settings = SpeculationBenchmark(rows, tokens, speculate, rounds, 1 if cpu_time else threads, cpu_time)
    report = run(package, settings, console.print)
    show(report, console)
    if out is not None:
        report.write(out)


if __name__ == "__main__":
    main()
