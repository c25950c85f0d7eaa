"""A run from its settings to a trained model: one function a stage."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from bitnet_onnx.errors import InputError, TrainingError
from bitnet_onnx.training._monitors import run_monitors, write_run_page
from bitnet_onnx.training.checkpoints import Checkpoints
from bitnet_onnx.training.config_file import flat
from bitnet_onnx.training.data import TrainingData, open_data
from bitnet_onnx.training.engines.choice import needs_file, open_engine
from bitnet_onnx.training.loop import run
from bitnet_onnx.training.monitoring import LOG_NAME, JsonLog
from bitnet_onnx.training.monitoring.progress import say, stage_bar
from bitnet_onnx.training.optimizers.optimizer import make_optimizer
from bitnet_onnx.training.parallel import Collective, ToldElsewhereError, agree, open_collective
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.parts import Parts
from bitnet_onnx.training.preparation import Preparation, prepare_run
from bitnet_onnx.training.result import TrainingResult, write_result
from bitnet_onnx.training.run_directory import TOKENS, Begin, check_directory, enter_directory, held_directory
from bitnet_onnx.training.settings import TrainingSettings
from bitnet_onnx.training.start import Start
from bitnet_onnx.training.sub_norms import fit_sub_norms
from bitnet_onnx.training.teacher import open_teacher

#: Tokens that sub-norms are fitted to; each has all features to say how large they are.
_NORM_TOKENS: Final = 1024


def train(
    settings: TrainingSettings, *, begin: Begin = Begin.AUTO, console: Console | None = None
) -> TrainingResult | None:
    """Train a model, and write it as a Hugging Face directory.

    Args:
        settings: of the run.
        begin: at the last checkpoint, or anew.
        console: where the plan and the progress are shown.

    Returns:
        What came out; None in processes whose rank is not 0.

    Raises:
        InputError: the settings do not fit what they name, the checkpoints of another run are there, or another
            process is at work there.
        TrainingError: the run cannot go on; a `ToldElsewhereError` in all processes but the one that tells why.
    """
    with open_collective() as processes, ExitStack() as stack:
        try:
            return _train(settings, begin, console if processes.rank == 0 else None, processes, stack)
        except TrainingError as error:
            # What a loop cannot go on with, all processes find at once; one that is gone, all others miss.
            if processes.rank == 0:
                raise
            raise ToldElsewhereError(str(error)) from error


def _train(
    settings: TrainingSettings, begin: Begin, console: Console | None, processes: Collective, stack: ExitStack
) -> TrainingResult | None:
    first, fields = processes.rank == 0, flat(settings)
    checkpoints = Checkpoints(settings.output, settings=fields, keep=settings.loop.keep)

    def held() -> None:
        if first:
            check_directory(settings, checkpoints, begin)
            stack.enter_context(held_directory(settings.output))

    agree(processes, held)
    preparing = prepare_run(settings, processes=processes.size, keep=first)
    prepared = agree(processes, lambda: stack.enter_context(preparing))
    _say(console, prepared.describe())
    agree(processes, lambda: enter_directory(settings, begin) if first else None)
    data = _open_data(prepared, processes, console)
    store = stack.enter_context(_filled_store(prepared, data, new=checkpoints.settings() is None))
    log = JsonLog(settings.output / LOG_NAME, fields, every=settings.loop.log_every)
    parts = _parts(prepared, processes, checkpoints, data, store, log, console, stack)
    try:
        outcome = run(settings, parts)
        if not first:
            return None
        result = write_result(prepared, parts, outcome)
        if result.model is not None:
            log.result({"end": str(result.end), "loss": result.loss, "perplexity": result.perplexity})
        return result
    finally:
        if first:
            write_run_page(settings.output)


@contextmanager
def check_run(settings: TrainingSettings) -> Iterator[Preparation]:
    """What a run would be, and what it would take; its texts are read, and nothing stays written.

    Raises:
        InputError: the settings do not fit what they name, the texts or the memory.
    """
    check_directory(settings, Checkpoints(settings.output, settings={}), Begin.AUTO)
    with prepare_run(settings) as prepared, tempfile.TemporaryDirectory(prefix="bitnet-onnx-") as cache:
        known = settings.data.cache or settings.output / TOKENS
        folder = known if known.is_dir() else Path(cache)
        data = open_data(replace(settings.data, cache=folder), prepared.tokenizer, seed=settings.seed, cache=folder)
        _check_batch(settings, len(data.train.windows))
        yield prepared


def _open_data(prepared: Preparation, processes: Collective, console: Console | None) -> TrainingData:
    """Tokenize in the process of rank 0, and open the tokens in all."""
    settings = prepared.settings

    def opened() -> TrainingData:
        with stage_bar(console) as report:
            return open_data(
                settings.data,
                prepared.tokenizer,
                seed=settings.seed,
                rank=processes.rank,
                size=processes.size,
                cache=settings.output / TOKENS,
                progress=None if report is None else lambda done, total: report("reading texts", done, total),
            )

    found = agree(processes, lambda: opened() if processes.rank == 0 else None)
    data = agree(processes, lambda: found or opened())
    train, validation = data.train.windows, data.validation
    _check_batch(settings, len(train))
    lines = [f"{train.counts.tokens:,} tokens in {len(train):,} windows of {train.length}"]
    if validation is not None:
        lines.append(f"{min(len(validation.windows), settings.loop.evaluation_windows):,} windows to evaluate with")
    _say(console, [", ".join(lines)])
    return data


def _check_batch(settings: TrainingSettings, windows: int) -> None:
    """Refuse a step that would read the same window more than once.

    Raises:
        InputError: it would.
    """
    if settings.loop.batch > windows:
        raise InputError(
            f"loop.batch is {settings.loop.batch}: the training texts give {windows:,} windows of "
            f"{settings.data.length} tokens; take a smaller batch, a smaller data.length, or more text"
        )


@contextmanager
def _filled_store(prepared: Preparation, data: TrainingData, *, new: bool) -> Iterator[ParameterStore]:
    """The parameters; in a file where the engine has a process of its own.

    Args:
        prepared: what is trained.
        data: on which norms are fitted that were put into a trained model.
        new: with the values that they start from; otherwise a checkpoint will fill them.
    """
    shapes = prepared.graph.parameters
    decayed = prepared.start.decayed.intersection(shapes)
    with ExitStack() as stack:
        path = None
        if needs_file(prepared.engine):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bitnet-onnx-", ignore_cleanup_errors=True))
            path = Path(folder) / "parameters"
        store = ParameterStore(shapes, decayed=decayed, path=path)
        if new:
            _with_fitted_norms(prepared, data).fill(store)
        yield store


def _with_fitted_norms(prepared: Preparation, data: TrainingData) -> Start:
    """The start, its sub-norms fitted to windows that lie far apart, which are the same in all processes."""
    windows = data.train.windows
    count = max(1, min(len(windows), _NORM_TOKENS // windows.length))
    taken = windows.batch(np.arange(count) * len(windows) // count)
    return fit_sub_norms(prepared.start, taken.input_ids, threads=prepared.engine.threads)


def _parts(
    prepared: Preparation,
    processes: Collective,
    checkpoints: Checkpoints,
    data: TrainingData,
    store: ParameterStore,
    log: JsonLog,
    console: Console | None,
    stack: ExitStack,
) -> Parts:
    """Everything that the loop works with; the stack closes it."""
    settings, engine_settings = prepared.settings, prepared.engine
    teacher = open_teacher(
        settings.losses, prepared.start, max_length=settings.data.length, threads=engine_settings.threads
    )
    with stage_bar(console) as report:
        engine = open_engine(prepared.graph, store, engine_settings, report)
    stack.callback(engine.close)
    optimizer = make_optimizer(
        settings.optimizer, store, ternary=frozenset(prepared.ternary), threads=engine_settings.threads or None
    )
    stack.callback(optimizer.close)
    monitors = run_monitors(prepared, store, log, console) if processes.rank == 0 else ()
    return Parts(
        engine,
        store,
        optimizer,
        prepared.schedules,
        data.train,
        data.validation,
        checkpoints,
        processes,
        teacher=teacher,
        monitors=monitors,
        micro_batch=prepared.plan.micro_batch,
    )


def _say(console: Console | None, lines: Iterable[str]) -> None:
    if console is not None:
        for line in lines:
            say(console, line)
