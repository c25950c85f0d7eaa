"""What each form of a package costs: size, load, memory, speed, and how far logits are from our operator library's.

    python -P benchmarks/operator_forms.py MODEL --out benchmarks/results/operator-forms-NAME.json

MODEL is converted three times into a temporary directory, `--operator bitnet`, `stock` and `standard`; the first is run
with the operator library and on its function bodies. Every candidate runs in a process of its own. With `--text` their
perplexity is measured too.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click
import numpy as np
from rich.console import Console

from bitnet_onnx.api import convert, evaluate
from bitnet_onnx.benchmarks._process import Job, Worker
from bitnet_onnx.benchmarks.results import OURS, Comparison, Report
from bitnet_onnx.benchmarks.tables import show
from bitnet_onnx.benchmarks.timing import Candidate, Samples, interleave
from bitnet_onnx.evaluation.quality import QualityOptions, WindowRule
from bitnet_onnx.metrics import relative_error
from bitnet_onnx.package_format import MODEL, MODEL_DATA, Operators
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime import Device, auto_select_device, load

BODIES: Final = "function bodies"
_CONTEXT: Final = 1024
_PROBE: Final = 64
_FILE_WIDTH: Final = 120

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FormSettings:
    """What to measure.

    Attributes:
        prefill_tokens: length of the prompt.
        decode_tokens: steps of one round.
        context: tokens in the cache in the second decode case, cut to what the model allows.
        rounds: interleaved rounds.
        starts: processes of each candidate, whose load is timed; 0: none.
        tokens: of all texts together, for perplexity.
        threads: of one operator.
    """

    prefill_tokens: int = 256
    decode_tokens: int = 16
    context: int = _CONTEXT
    rounds: int = 7
    starts: int = 3
    tokens: int = 8192
    threads: int = 2


def measure(source: str, texts: Sequence[Path], settings: FormSettings, progress: Progress = lambda _: None) -> Report:
    """Convert a model into every form and measure each.

    Raises:
        BitnetOnnxError: the model cannot be converted, or a candidate's process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in Operators}
        for name, path in paths.items():
            progress(f"converting, {name} operators")
            convert(source, path, operator=str(name))
        jobs = [
            Job(OURS, "package", paths[Operators.BITNET]),
            Job(BODIES, "stock", paths[Operators.BITNET]),
            *(Job(str(name), "package", paths[name]) for name in Operators if name is not Operators.BITNET),
        ]
        facts: dict[str, object] = {
            "bytes": {
                name: {file: (path / file).stat().st_size for file in (MODEL, MODEL_DATA)}
                for name, path in paths.items()
            },
        }
        comparisons: list[Comparison] = []
        if settings.starts:
            progress("process starts")
            comparisons += _starts(jobs, settings)
        cases, facts["memory"] = _speed(jobs, settings, progress)
        comparisons += cases
        facts["logits"] = _distances(jobs, progress)
        if texts:
            facts["perplexity"] = {job.name: _perplexity(job, texts, settings, progress) for job in jobs}
    notes = (
        "Memory is what the process has for itself after it has read a prompt, weights that are mapped left out.",
        "The distance of logits is relative, of root mean squares, over the positions of one prompt.",
    )
    return Report("operator_forms", {"source": source, **asdict(settings)}, tuple(comparisons), facts, notes)


def _starts(jobs: Sequence[Job], settings: FormSettings) -> list[Comparison]:
    """Fresh processes: the time until the first logits, and the part of it that loads the model."""
    loads: dict[str, list[float]] = {job.name: [] for job in jobs}

    def start(job: Job) -> float:
        with Worker(job, settings.threads, settings.context) as worker:
            loads[job.name].append(worker.load_s)
            return worker.first_token_s

    firsts = interleave({job.name: partial(start, job) for job in jobs}, rounds=settings.starts)
    loaded = {name: Samples(tuple(values[1:])) for name, values in loads.items()}
    return [
        Comparison("load", settings.threads, loaded),
        Comparison("process start to first token", settings.threads, firsts),
    ]


def _speed(
    jobs: Sequence[Job], settings: FormSettings, progress: Progress
) -> tuple[list[Comparison], list[dict[str, object]]]:
    """Prompts and steps, and the memory after the prompts."""
    threads, steps = settings.threads, settings.decode_tokens
    with ExitStack() as stack:
        workers = {job.name: stack.enter_context(Worker(job, threads, settings.context)) for job in jobs}

        def timed(case: str, tokens: int, run: Callable[[Worker], Candidate]) -> Comparison:
            progress(case)
            samples = interleave({name: run(worker) for name, worker in workers.items()}, rounds=settings.rounds)
            return Comparison(case, threads, samples, tokens=tokens)

        prefill = settings.prefill_tokens
        cases = [timed(f"prefill {prefill}", prefill, lambda worker: partial(worker.prefill, prefill))]
        memory: list[dict[str, object]] = [
            {"candidate": name, "threads": threads, "first_token_peak_bytes": None, **worker.memory()}
            for name, worker in workers.items()
        ]
        for context in (0, settings.context - steps):

            def steps_behind(worker: Worker, context: int = context) -> Candidate:
                return partial(worker.decode, context, steps)

            cases.append(timed(f"decode behind {context}", 1, steps_behind))
    return cases, memory


def _distances(jobs: Sequence[Job], progress: Progress) -> dict[str, float]:
    """Of the logits of each candidate from the first one's."""
    progress("logits")
    found: dict[str, FloatArray] = {}
    for job in jobs:
        model = load(job.path, device=_device(job))
        ids = (np.arange(_PROBE) * 7919 + 1009) % model.package.architecture.vocab_size
        found[job.name] = model.session.forward(ids.tolist(), model.session.new_cache())
    return {name: round(relative_error(found[OURS], logits), 5) for name, logits in found.items()}


def _perplexity(job: Job, texts: Sequence[Path], settings: FormSettings, progress: Progress) -> dict[str, float]:
    progress(f"perplexity, {job.name}")
    options = QualityOptions(device=_device(job), threads=settings.threads, rule=WindowRule(tokens=settings.tokens))
    return {
        Path(text.name).name: round(text.perplexity, 3)
        for text in evaluate(job.path, texts=texts, options=options).texts
    }


def _device(job: Job) -> Device | None:
    if job.kind == "stock":
        return Device()
    return auto_select_device() if job.name == OURS else None


@click.command()
@click.argument("model")
@click.option(
    "--text", "texts", type=click.Path(path_type=Path, exists=True), multiple=True, help="UTF-8 text for perplexity."
)
@click.option("--prefill", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--context", type=click.IntRange(min=32), default=_CONTEXT, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--starts", type=click.IntRange(min=0), default=3, show_default=True)
@click.option("--tokens", type=click.IntRange(min=256), default=8192, show_default=True, help="For perplexity.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(
    model: str,
    texts: tuple[Path, ...],
    prefill: int,
    context: int,
    rounds: int,
    starts: int,
    tokens: int,
    threads: int,
    out: Path,
) -> None:
    """Measure MODEL, a checkpoint or a name of the zoo, in every form."""
    settings = FormSettings(
        prefill_tokens=prefill, context=context, rounds=rounds, starts=starts, tokens=tokens, threads=threads
    )
    console = Console(stderr=True)
    report = measure(model, texts, settings, lambda text: console.print(text, style="dim"))
    report.write(out)
    # A file takes a whole line of the table; a terminal shows what fits.
    show(report, Console(width=None if sys.stdout.isatty() else _FILE_WIDTH))
    for name in ("bytes", "logits", "perplexity"):
        click.echo(f"{name}: {json.dumps(report.facts.get(name))}")


if __name__ == "__main__":
    main()
