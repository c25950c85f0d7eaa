"""Those who watch a run, as its settings ask for them."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from rich.console import Console

from bitnet_onnx.errors import InputError
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
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.preparation import Preparation
from bitnet_onnx.training.records import Monitor
from bitnet_onnx.training.run_directory import TENSORBOARD

logger = logging.getLogger(__name__)


def run_monitors(
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


def write_run_page(output: Path) -> None:
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
