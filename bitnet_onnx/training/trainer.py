"""A run from its settings to a trained model: one function a stage."""

from __future__ import annotations

import enum
import importlib.util
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.checkpoints import FOLDER, Checkpoints
from bitnet_onnx.training.config_file import flat, write_config
from bitnet_onnx.training.data import TrainingData, open_data
from bitnet_onnx.training.engines.choice import needs_file, open_engine
from bitnet_onnx.training.export import Trained, write_checkpoint
from bitnet_onnx.training.loop import Outcome, run
from bitnet_onnx.training.monitoring import (
    LOG_NAME,
    PAGE_NAME,
    History,
    JsonLog,
    MeasuringMonitor,
    ProgressLine,
    QuantizationMetrics,
    QuantizationMonitor,
    TensorBoardLog,
    write_page,
)
from bitnet_onnx.training.monitoring.progress import stage_bar
from bitnet_onnx.training.optimizers.optimizer import make_optimizer
from bitnet_onnx.training.parallel import Collective, open_collective
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.parts import Parts
from bitnet_onnx.training.preparation import Preparation, prepare_run
from bitnet_onnx.training.records import End, Monitor
from bitnet_onnx.training.resumption import check_same_run
from bitnet_onnx.training.settings import TrainingSettings
from bitnet_onnx.training.start import Start
from bitnet_onnx.training.sub_norms import fit_sub_norms
from bitnet_onnx.training.teacher import open_teacher

logger = logging.getLogger(__name__)

#: In the directory of a run, beside the log, its page and the checkpoints.
CONFIG: Final = "config.toml"
MODEL: Final = "model"
TOKENS: Final = "tokens"
TENSORBOARD: Final = "tensorboard"
#: Tokens that sub-norms are fitted to; each has all features to say how large they are.
_NORM_TOKENS: Final = 1024


#: Tokens on which the norms that are put into a trained model are fitted.
_FITTED: Final = 512


class Begin(enum.StrEnum):
    """Where a run begins."""

    #: at the last checkpoint, if there is one
    AUTO = "auto"
    #: at the last checkpoint
    RESUME = "resume"
    #: at the start; what the run before left is removed
    FRESH = "fresh"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run came to.

    Attributes:
        directory: of the run.
        model: the Hugging Face directory; None where a signal stopped the run.
        end: why it ended.
        step: steps done.
        steps: of the whole run.
        loss: of the model's evaluation, nats a token; None without validation data.
        loss_step: when the model's values were those.
        signal: that stopped it.
    """

    directory: Path
    model: Path | None
    end: End
    step: int
    steps: int
    loss: float | None
    loss_step: int
    signal: int | None

    @property
    def perplexity(self) -> float | None:
        """Of the validation data."""
        if self.loss is None:
            return None
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        perplexity = self.perplexity
        return {
            **asdict(self),
            "directory": str(self.directory),
            "model": None if self.model is None else str(self.model),
            "perplexity": perplexity if perplexity is None or math.isfinite(perplexity) else None,
        }


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
        InputError: the settings do not fit what they name, or the checkpoints of another run are there.
        TrainingError: the run cannot go on.
    """
    with open_collective() as processes:
        console = console if processes.rank == 0 else None
        checkpoints = Checkpoints(settings.output, settings=dict(flat(settings)), keep=settings.loop.keep)
        _open_directory(settings, checkpoints, begin, processes)
        with prepare_run(settings, processes=processes.size) as prepared, ExitStack() as stack:
            _say(console, prepared.describe())
            data = _open_data(prepared, processes, console)
            prepared = _with_fitted_norms(prepared, data)
            store = stack.enter_context(_filled_store(prepared, data, new=checkpoints.settings() is None))
            log = JsonLog(settings.output / LOG_NAME, dict(flat(settings)), every=settings.loop.log_every)
            parts = _parts(prepared, processes, checkpoints, data, store, log, console, stack)
            try:
                outcome = run(settings, parts)
                if processes.rank != 0:
                    return None
                result = _result(prepared, parts, outcome)
                if result.model is not None:
                    log.result({"end": str(result.end), "loss": result.loss, "perplexity": result.perplexity})
                return result
            finally:
                if processes.rank == 0:
                    _write_page(settings.output)


@contextmanager
def check_run(settings: TrainingSettings) -> Iterator[Preparation]:
    """What a run would be, and what it would take; nothing is written.

    Raises:
        InputError: the settings do not fit what they name, or the memory.
    """
    saved = Checkpoints(settings.output, settings={}).settings()
    if saved is not None:
        check_same_run(saved, dict(flat(settings)), str(settings.output))
    with prepare_run(settings) as prepared:
        yield prepared


def _open_directory(settings: TrainingSettings, checkpoints: Checkpoints, begin: Begin, processes: Collective) -> None:
    """Make the directory of the run, and refuse or remove what is in it."""
    output = settings.output
    if processes.rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        if begin is Begin.FRESH:
            _remove_run(output)
        saved = checkpoints.settings()
        if saved is not None:
            check_same_run(saved, dict(flat(settings)), str(output))
        elif begin is Begin.RESUME:
            raise InputError(f"{output}: no checkpoint to go on from; leave --resume out to begin")
        (output / CONFIG).write_text(write_config(settings), encoding="utf-8")
    processes.barrier()


def _remove_run(output: Path) -> None:
    """Remove what a run before wrote, but for its model, which the next one replaces."""
    for name in (FOLDER, TENSORBOARD):
        if (output / name).exists():
            shutil.rmtree(output / name)
    for name in (LOG_NAME, PAGE_NAME):
        (output / name).unlink(missing_ok=True)


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

    data = opened() if processes.rank == 0 else None
    processes.barrier()
    data = data or opened()
    train, validation = data.train.windows, data.validation
    lines = [f"{train.counts.tokens:,} tokens in {len(train):,} windows of {train.length}"]
    if validation is not None:
        lines.append(f"{min(len(validation.windows), settings.loop.evaluation_windows):,} windows to evaluate with")
    _say(console, [", ".join(lines)])
    return data


def _with_fitted_norms(prepared: Preparation, data: TrainingData) -> Preparation:
    """The same, its sub-norms fitted to windows that lie far apart, which are the same in all processes."""
    windows = data.train.windows
    count = max(1, min(len(windows), _NORM_TOKENS // windows.length))
    taken = windows.batch(np.arange(count) * len(windows) // count)
    return replace(prepared, start=fit_sub_norms(prepared.start, taken.input_ids, threads=prepared.engine.threads))


@contextmanager
def _filled_store(prepared: Preparation, data: TrainingData, *, new: bool) -> Iterator[ParameterStore]:
    """The parameters; in a file where the engine has a process of its own.

    Args:
        prepared: what is trained.
        data: on which norms are fitted that were put into a trained model.
        new: with the values that they start from; otherwise a checkpoint will fill them.
    """
    shapes = prepared.graph.parameters
    decayed = frozenset(name for name in shapes if name in prepared.start.decayed)
    with ExitStack() as stack:
        path = None
        if needs_file(prepared.engine):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bitnet-onnx-", ignore_cleanup_errors=True))
            path = Path(folder) / "parameters"
        store = ParameterStore(shapes, decayed=decayed, path=path)
        if new:
            windows = data.train.windows
            first = np.arange(min(len(windows), max(1, _FITTED // windows.length)))
            ids = windows.batch(first).input_ids
            fit_sub_norms(prepared.start, ids, threads=prepared.engine.threads).fill(store)
        yield store


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
    optimizer = make_optimizer(settings.optimizer, store, ternary=frozenset(prepared.ternary))
    stack.callback(optimizer.close)
    monitors = _monitors(prepared, store, log, console) if processes.rank == 0 else ()
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


def _monitors(
    prepared: Preparation, store: ParameterStore, log: JsonLog, console: Console | None
) -> tuple[Monitor, ...]:
    """Those who watch, the log first: measurements are told to it."""
    settings = prepared.settings
    monitors: list[Monitor] = [log]
    listeners: list[QuantizationMonitor] = [log]
    if settings.loop.tensorboard:
        board = TensorBoardLog(settings.output / TENSORBOARD, every=settings.loop.log_every)
        monitors.append(board)
        listeners.append(board)
    if settings.loop.measure_every and prepared.ternary:
        metrics = QuantizationMetrics(store, prepared.ternary, _first_scales(settings.output))
        monitors.append(MeasuringMonitor(metrics, settings.loop.measure_every, listeners))
    if console is not None:
        monitors.append(ProgressLine(console, settings.loop.steps))
    return tuple(monitors)


def _first_scales(output: Path) -> dict[str, float]:
    """Scales at the start of a run that goes on, by its log."""
    log = output / LOG_NAME
    if not log.exists():
        return {}
    try:
        records = History.read(log).quantization
    except InputError as error:
        logger.warning("%s: drift counts from now on", error)
        return {}
    start = records[0] if records and records[0].step == 0 else None
    return {} if start is None else {name: layer.scale for name, layer in start.layers.items()}


def _result(prepared: Preparation, parts: Parts, outcome: Outcome) -> TrainingResult:
    """Write the best values, or the last where nothing was evaluated, as a model."""
    settings = prepared.settings
    model = None
    if outcome.end is not End.STOPPED:
        if outcome.best is not None and outcome.best_step != outcome.step:
            parts.checkpoints.read_values(outcome.best, parts.store)
        model = settings.output / MODEL
        trained = Trained(settings.model.weights, settings.model.activation_bits, settings.model.head)
        values = _Values(parts.store, prepared.start)
        write_checkpoint(model, prepared.start, values, trained, overwrite=True)
    return TrainingResult(
        settings.output,
        model,
        outcome.end,
        outcome.step,
        settings.loop.steps,
        outcome.best_loss,
        outcome.best_step,
        outcome.signal,
    )


@dataclass(frozen=True, slots=True)
class _Values:
    """Every tensor of a decoder: those that are not trained are as they were."""

    store: ParameterStore
    start: Start

    def __call__(self, role: str) -> FloatArray:
        return self.store.value(role) if role in self.store.shapes else self.start.read(role)


def _write_page(output: Path) -> None:
    """Write the page of the run, where the library that draws is there and a log is."""
    if not (output / LOG_NAME).exists():
        return
    if importlib.util.find_spec("matplotlib") is None:
        logger.info("no %s: it needs matplotlib, pip install 'bitnet-onnx[train]'", PAGE_NAME)
        return
    try:
        write_page(output)
    except InputError as error:
        logger.warning("%s", error)


def _say(console: Console | None, lines: Iterator[str] | list[str]) -> None:
    for line in lines if console is not None else ():
        console.print(line, highlight=False, markup=False, soft_wrap=True)  # type: ignore[union-attr]
