"""What int8 keys and values cost and bring: perplexity of texts, and the speed of a step behind a long context.

    python -P benchmarks/kv_precision.py PACKAGE --text FILE --text FILE --out benchmarks/results/kv_precision.json

Perplexity is over windows of 256 tokens, spread evenly over each text behind its first 512 tokens, and over the last
1024 tokens of one long window. Scales are measured from text that the model writes itself, and from the first 512
tokens of each text. The same tokens are read with each cache, so that a change is told with the standard error of the
mean difference. Without a text only speed is measured, with --no-speed only perplexity.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console

from bitnet_onnx.benchmarks.results import OURS, Comparison, Report
from bitnet_onnx.benchmarks.tables import show
from bitnet_onnx.benchmarks.timing import Candidate, interleave, timed
from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.devices import Device, auto_select_device
from bitnet_onnx.runtime.kv_calibration import HEADROOM, TOKENS, measure_kv_scales
from bitnet_onnx.runtime.kv_scales import KvScales
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.session import DecoderSession
from bitnet_onnx.runtime.tokenizer import TextTokenizer

FLOAT = "float32"
SELF_WRITTEN = "int8, scales from text of its own"
_WINDOW = 256
_SCORED = 1024


@dataclass(frozen=True, slots=True)
class KvSettings:
    """What to measure.

    Attributes:
        windows: short windows of each text.
        long_window: tokens of the long one; 0: none.
        contexts: tokens before the steps whose time is taken.
        steps: steps of a run.
        rounds: runs of each candidate.
        threads: threads of one operator.
    """

    windows: int = 16
    long_window: int = 4096
    contexts: tuple[int, ...] = (512, 2048, 8000)
    steps: int = 8
    rounds: int = 15
    threads: int = 2


def run(
    path: Path, texts: Sequence[Path], settings: KvSettings, progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Measure a package on some texts.

    Raises:
        PackageError: `path` is no package.
        InputError: a text or the context of the model is too short.
    """
    package, device = PackageInfo.open(path), auto_select_device()
    context = package.architecture.context_length
    if (needed := max(_WINDOW, settings.long_window, *(size + settings.steps for size in settings.contexts))) > context:
        raise InputError(f"{path}: its context is shorter than the {needed} tokens of the benchmark")
    read = {text.stem: _tokens(text, package, max(_WINDOW, settings.long_window)) for text in texts}
    progress("scales")
    scales: dict[str, KvScales | None] = {FLOAT: None}
    scales[SELF_WRITTEN] = measure_kv_scales(package, device, threads=settings.threads)
    for name, ids in read.items():
        beginning = ids[:TOKENS].reshape(-1, _WINDOW).tolist()
        scales[f"int8, scales from {name}"] = measure_kv_scales(
            package, device, texts=beginning, threads=settings.threads
        )
    results: list[dict[str, object]] = []
    exact: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    for cache, chosen in scales.items() if read else ():
        session = DecoderSession(package, device, threads=settings.threads, kv_scales=chosen)
        for name, ids in read.items():
            for kind, windows in _windows(ids[TOKENS:], settings):
                progress(f"{cache}: {name}, {kind}")
                losses = np.concatenate([_losses(session, window) for window in windows])
                reference = exact.setdefault((name, kind), losses)
                results.append({"cache": cache, "text": name, "windows": kind, **_quality(losses, reference)})
    comparisons = [
        _speed(package, device, scales[SELF_WRITTEN], context, settings, progress) for context in settings.contexts
    ]
    sizes = package.architecture
    return Report(
        "kv_precision",
        {**asdict(settings), "headroom": HEADROOM, "measured_tokens": TOKENS},
        tuple(comparisons),
        facts={
            "bytes_a_token": {
                FLOAT: sizes.cache_bytes_of(np.dtype(np.float32)),
                "int8": sizes.cache_bytes_of(np.dtype(np.int8)),
            },
            "perplexity": results,
        },
        notes=(f"`{OURS}` holds keys and values as int8.",),
    )


def _tokens(path: Path, package: PackageInfo, longest: int) -> npt.NDArray[np.int64]:
    text = path.read_text(encoding="utf-8", errors="replace")
    ids = np.array(TextTokenizer(package).encode(text, parse_special=False, add_bos=False), np.int64)
    if ids.size < TOKENS + longest:
        raise InputError(f"{path}: {ids.size} tokens, expected at least {TOKENS + longest}")
    return ids


def _windows(ids: npt.NDArray[np.int64], settings: KvSettings) -> Iterator[tuple[str, list[npt.NDArray[np.int64]]]]:
    starts = np.linspace(0, ids.size - _WINDOW, settings.windows).astype(int)
    yield f"{settings.windows} of {_WINDOW}", [ids[start : start + _WINDOW] for start in starts]
    if settings.long_window:
        start = (ids.size - settings.long_window) // 2
        yield f"1 of {settings.long_window}", [ids[start : start + settings.long_window]]


def _losses(session: DecoderSession, window: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Negative logarithms of the probabilities of the last tokens of a window."""
    cache = session.new_cache()
    unscored = max(window.size - _SCORED, 0)
    if unscored:
        session.step(window[:unscored].tolist(), cache)
    losses = []
    for start in range(unscored, window.size - 1, _WINDOW):
        chunk = window[start : min(start + _WINDOW, window.size - 1)]
        logits = session.forward(chunk.tolist(), cache).astype(np.float64)
        peak = logits.max(axis=1)
        log_sum = peak + np.log(np.exp(logits - peak[:, np.newaxis]).sum(axis=1))
        losses.append(log_sum - logits[np.arange(chunk.size), window[start + 1 : start + 1 + chunk.size]])
    return np.concatenate(losses)


def _quality(losses: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> dict[str, float]:
    difference = losses - reference
    return {
        "perplexity": round(float(np.exp(losses.mean())), 3),
        "change_percent": round(100 * math.expm1(float(difference.mean())), 2),
        "standard_error_percent": round(100 * float(difference.std()) / math.sqrt(difference.size), 2),
    }


def _speed(
    package: PackageInfo,
    device: Device,
    scales: KvScales | None,
    context: int,
    settings: KvSettings,
    progress: Callable[[str], None],
) -> Comparison:
    """Steps behind a context of which only the length matters."""
    progress(f"steps behind {context} tokens")
    candidates = {
        OURS: _steps(DecoderSession(package, device, threads=settings.threads, kv_scales=scales), context, settings),
        FLOAT: _steps(DecoderSession(package, device, threads=settings.threads), context, settings),
    }
    samples = interleave(candidates, rounds=settings.rounds)
    return Comparison(f"decode behind {context}", settings.threads, samples, tokens=settings.steps)


def _steps(session: DecoderSession, context: int, settings: KvSettings) -> Candidate:
    cache = session.new_cache()
    cache.reserve(context + settings.steps)
    # Pages that were never written are all one, which no memory is read for.
    random = np.random.default_rng(0)
    for buffer in cache.buffers:
        buffer[:] = random.integers(-100, 100, buffer.shape, np.int8)
    cache.advance(context)

    def steps() -> None:
        cache.truncate(context)
        for _ in range(settings.steps):
            session.step([1], cache)

    return timed(steps)


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option(
    "--text", "texts", type=click.Path(path_type=Path, exists=True), multiple=True, help="UTF-8 text to read."
)
@click.option("--windows", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--long-window", type=click.IntRange(min=0), default=4096, show_default=True)
@click.option("--contexts", type=int, multiple=True, default=(512, 2048, 8000), show_default=True)
@click.option("--no-speed", is_flag=True, help="Leave the steps out.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(
    package: Path,
    texts: tuple[Path, ...],
    windows: int,
    long_window: int,
    contexts: tuple[int, ...],
    no_speed: bool,
    rounds: int,
    threads: int,
    out: Path,
) -> None:
    """Measure keys and values of PACKAGE as float32 and as int8."""
    chosen = () if no_speed else contexts
    settings = KvSettings(windows, long_window, chosen, rounds=rounds, threads=threads)
    console = Console(stderr=True)
    report = run(package, texts, settings, lambda line: console.print(line, style="dim", markup=False))
    report.write(out)
    for entry in report.as_dict()["perplexity"]:  # type: ignore[attr-defined]  # a list
        click.echo(entry)
    show(report, Console(file=sys.stdout))


if __name__ == "__main__":
    main()
