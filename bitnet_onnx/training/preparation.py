"""What a run is made of before its first step: model, tokenizer, graph, teacher, and how a step is cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import InputError
from bitnet_onnx.policy import HEAD_ROLES
from bitnet_onnx.training._config_checks import has_strength
from bitnet_onnx.training.data import read_texts, train_tokenizer
from bitnet_onnx.training.engines.choice import choose_engine
from bitnet_onnx.training.engines.memory import MemoryModel, Plan, free_bytes
from bitnet_onnx.training.graph.decoder import TrainingGraph, training_graph
from bitnet_onnx.training.graph.losses import relation_heads
from bitnet_onnx.training.graph.options import GraphOptions, Term
from bitnet_onnx.training.parallel import Collective
from bitnet_onnx.training.schedules import Schedules, layer_groups
from bitnet_onnx.training.settings import (
    BlockWeights,
    DataSettings,
    EngineName,
    EngineSettings,
    LossSettings,
    OptimizerName,
    TrainingSettings,
)
from bitnet_onnx.training.start import Start, open_start

_MOMENTS: Final[Mapping[OptimizerName, int]] = {
    OptimizerName.ADAMW: 2,
    OptimizerName.DAMPED_ADAMW: 2,
    OptimizerName.SGD: 1,
}
