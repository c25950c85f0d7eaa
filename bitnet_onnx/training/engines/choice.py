"""Which engine computes gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.engines.current import CurrentEngine
from bitnet_onnx.training.engines.engine import GradientEngine
from bitnet_onnx.training.engines.environment import Progress, prepare
from bitnet_onnx.training.engines.ort_training import OrtTrainingEngine
from bitnet_onnx.training.settings import EngineName, EngineSettings

if TYPE_CHECKING:
    from bitnet_onnx.training.graph.decoder import TrainingGraph
    from bitnet_onnx.training.parameters import ParameterStore


def choose_engine(settings: EngineSettings) -> EngineName:
    """The engine that settings ask for, `auto` resolved.

    Raises:
        InputError: the engine cannot do what is asked.
    """
    if settings.name is EngineName.ONNXRUNTIME_TRAINING and settings.recompute:
        raise InputError(
            'engine.recompute = true: onnxruntime-training keeps all values; take engine.name = "onnxruntime"'
        )
    # Measured: onnxruntime as it is takes less time for a step, at one thread and at two.
    return EngineName.ONNXRUNTIME if settings.name is EngineName.AUTO else settings.name


def needs_file(settings: EngineSettings) -> bool:
    """Whether the engine wants the `ParameterStore` in a file."""
    return choose_engine(settings) is EngineName.ONNXRUNTIME_TRAINING


def open_engine(
    graph: TrainingGraph, store: ParameterStore, settings: EngineSettings, progress: Progress | None = None
) -> GradientEngine:
    """An engine for a graph whose parameters lie in a store.

    Args:
        graph: what is trained.
        store: in a file where `needs_file` says so.
        settings: `micro_batch` is the loop's; of `recompute` None is no.
        progress: told of the stages of making an environment, where the engine needs one.

    Raises:
        InputError: the engine cannot do what is asked, or cannot be had on this machine.
        BitnetOnnxError: it does not start.
    """
    if choose_engine(settings) is EngineName.ONNXRUNTIME:
        return CurrentEngine(graph, store, settings)
    return OrtTrainingEngine(graph, store, settings, prepare(progress))
