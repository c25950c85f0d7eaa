"""How fast is a package, from a cold process to the thousandth token, and how much memory does it take?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bitnet_onnx.benchmarks._process import Job, Worker, llama_version
from bitnet_onnx.benchmarks.machine import physical_cores
from bitnet_onnx.benchmarks.results import OURS, Comparison, Report
from bitnet_onnx.benchmarks.timing import Candidate, Samples, interleave
from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.package import PackageInfo

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What to measure.

    Attributes:
        prefill_tokens: length of the prompt.
        decode_tokens: steps of one round.
        context: tokens already in the cache in the long decode case; cut to what the model allows.
        threads: thread counts, one after the other; none: 1 and all cores.
        rounds: interleaved rounds.
        starts: processes of each candidate, for the time to the first token.
        stock: the same package without the operator library is a candidate.
        gguf: a GGUF file for llama.cpp to run as a candidate.
        gguf_name: what tables call that candidate.
        llama_python: the interpreter that has llama-cpp-python.
    """

    prefill_tokens: int = 128
    decode_tokens: int = 16
    context: int = 1024
    threads: tuple[int, ...] = ()
    rounds: int = 7
    starts: int = 3
    stock: bool = True
    gguf: Path | None = None
    gguf_name: str = "llama.cpp"
    llama_python: str = sys.executable


def measure(path: Path, settings: ModelSettings, progress: Progress = lambda _: None) -> Report:
    """Measure a package and its peers.

    Raises:
        PackageError: `path` is no package.
        InputError: a peer was asked for that is not there, or the context is too short for the settings.
        BitnetOnnxError: a candidate's process failed.
    """
    package = PackageInfo.open(path)
    limit = package.architecture.context_length
    if max(settings.prefill_tokens, settings.decode_tokens) > limit:
        raise InputError(f"{path}: its context of {limit} tokens is shorter than the benchmark needs")
    context = min(settings.context, limit - settings.decode_tokens)
    jobs, versions = _jobs(path, settings)
    counts = settings.threads or tuple(sorted({1, physical_cores()}))
    comparisons, memory = [], []
    for threads in counts:
        with ExitStack() as stack:
            workers, first_peaks = {}, {}
            for job in jobs:
                progress(f"loading {job.name}, {threads} threads")
                workers[job.name] = stack.enter_context(Worker(job, threads, _room(settings)))
                first_peaks[job.name] = workers[job.name].memory()["peak_bytes"]
            progress(f"prefill, {threads} threads")
            comparisons.append(_prefill(workers, settings, threads))
            progress(f"decode, {threads} threads")
            # Short contexts first: the peak of memory belongs to all of it, the anonymous part to the end.
            comparisons.append(_decode(workers, settings, threads, context))
            memory += [
                {
                    "candidate": name,
                    "threads": threads,
                    "first_token_peak_bytes": first_peaks[name],
                    **worker.memory(),
                }
                for name, worker in workers.items()
            ]
    progress("process starts")
    comparisons += _starts(jobs, settings, max(counts))
    files = {entry.name: entry.stat().st_size for entry in sorted(path.iterdir()) if entry.is_file()}
    facts: dict[str, object] = {
        "package": {"bytes": sum(files.values()), "files": files},
        "memory": memory,
        "peers": versions,
    }
    notes = (
        "Every candidate runs once a round in a process of its own, in turn; ratios are medians over rounds.",
        f"The long context holds {context} tokens of zeros, whose attention costs as much as that of any others.",
        "A process start includes the interpreter, the imports and a prompt of one token; the page cache is warm.",
    )
    shown = {name: value for name, value in asdict(settings).items() if name not in ("gguf", "llama_python")}
    return Report("model", {"package": path.name, **shown, "context": context}, tuple(comparisons), facts, notes)


def _jobs(path: Path, settings: ModelSettings) -> tuple[list[Job], dict[str, str]]:
    jobs, versions = [Job(OURS, "package", path)], {}
    if settings.stock:
        jobs.append(Job("stock ONNX Runtime", "stock", path))
    if settings.gguf is not None:
        version = llama_version(settings.llama_python)
        if version is None:
            raise InputError(
                f"{settings.llama_python} has no llama-cpp-python: install it there, or name another interpreter"
            )
        versions["llama-cpp-python"] = version
        jobs.append(Job(settings.gguf_name, "llama", settings.gguf, settings.llama_python))
    return jobs, versions


def _room(settings: ModelSettings) -> int:
    """Positions that llama.cpp makes room for: what the cases need, in its multiples."""
    return -(-max(settings.prefill_tokens, settings.decode_tokens) // 256) * 256


def _prefill(workers: dict[str, Worker], settings: ModelSettings, threads: int) -> Comparison:
    tokens = settings.prefill_tokens
    candidates: dict[str, Candidate] = {name: partial(w.prefill, tokens) for name, w in workers.items()}
    samples = interleave(candidates, rounds=settings.rounds)
    return Comparison(f"prefill {tokens}", threads, samples, tokens=tokens)


def _decode(workers: dict[str, Worker], settings: ModelSettings, threads: int, context: int) -> Comparison:
    steps = settings.decode_tokens
    candidates: dict[str, Candidate] = {name: partial(w.decode, 0, steps) for name, w in workers.items()}
    candidates[f"{OURS} behind {context} tokens"] = partial(workers[OURS].decode, context, steps)
    return Comparison("decode", threads, interleave(candidates, rounds=settings.rounds), tokens=1)


def _starts(jobs: list[Job], settings: ModelSettings, threads: int) -> list[Comparison]:
    """Fresh processes: the time until the first logits, and the part of it that loads the model."""
    loads: dict[str, list[float]] = {job.name: [] for job in jobs}

    def start(job: Job) -> float:
        with Worker(job, threads, _room(settings)) as worker:
            loads[job.name].append(worker.load_s)
            return worker.first_token_s

    firsts = interleave({job.name: partial(start, job) for job in jobs}, rounds=settings.starts)
    kept = {name: Samples(tuple(values[1:])) for name, values in loads.items()}
    return [Comparison("process start to first token", threads, firsts), Comparison("load", threads, kept)]
