"""What a run is made of before its first step: model, tokenizer, graph, and how a step is cut."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx_ir as ir

from bitnet_onnx.converters.model import open_model
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.model_zoo import resolve
from bitnet_onnx.training.config_checks import has_strength
from bitnet_onnx.training.data import DataTokenizer, check_settings, read_texts
from bitnet_onnx.training.data.kept_tokenizer import kept_tokenizer
from bitnet_onnx.training.engines.choice import choose_engine
from bitnet_onnx.training.engines.memory import MemoryModel, Plan, free_bytes
from bitnet_onnx.training.graph.decoder import TrainingGraph, trained_parameters, training_graph
from bitnet_onnx.training.graph.options import GraphOptions, Term
from bitnet_onnx.training.monitoring.tensorboard import NO_TENSORBOARD
from bitnet_onnx.training.run_directory import TOKENIZER
from bitnet_onnx.training.schedules import Schedules, layer_groups
from bitnet_onnx.training.settings import (
    BlockWeights,
    EngineName,
    EngineSettings,
    OptimizerName,
    TrainingSettings,
)
from bitnet_onnx.training.start import Start, is_linear, open_start
from bitnet_onnx.training.teacher import relation_heads, relation_layer, teacher_graph

_MOMENTS: Final[Mapping[OptimizerName, int]] = {
    OptimizerName.ADAMW: 2,
    OptimizerName.TERNARY_MUON: 2,
    OptimizerName.SGD: 1,
}
#: What torchrun says of the processes on one machine.
_LOCAL_SIZE: Final = "LOCAL_WORLD_SIZE"


@dataclass(frozen=True, slots=True)
class Preparation:
    """A run before it starts; its start is open.

    Attributes:
        settings: of the run.
        start: what it begins with.
        tokenizer: of the model.
        schedules: what changes over the run.
        graph: what is trained.
        ternary: names of the parameters that are rounded to ternary codes.
        plan: how the part of a step that one process does is cut.
    """

    settings: TrainingSettings
    start: Start
    tokenizer: DataTokenizer
    schedules: Schedules
    graph: TrainingGraph
    ternary: tuple[str, ...]
    plan: Plan

    @property
    def engine(self) -> EngineSettings:
        """Of this run, with nothing left open."""
        plan = self.plan
        name = choose_engine(self.settings.engine)
        return replace(self.settings.engine, name=name, micro_batch=plan.micro_batch, recompute=plan.recompute)

    def describe(self) -> Iterator[str]:
        """What will be done, in a few lines."""
        spec, plan, batch = self.start.spec, self.plan, self.settings.loop.batch
        ternary = sum(math.prod(self.graph.parameters[name]) for name in self.ternary)
        size = sum(math.prod(shape) for shape in self.graph.parameters.values())
        yield (
            f"{self.start.name}: {size:,} weights in {spec.num_hidden_layers} layers, "
            f"{ternary:,} of them {'ternary' if ternary else 'rounded'}"
        )
        recompute = ", layers computed twice" if plan.recompute else ""
        yield f"{batch} sequences a step, {plan.micro_batch} at once{recompute}; engine {self.engine.name}"
        yield f"memory: {plan.estimate}"


@contextmanager
def prepare_run(settings: TrainingSettings, *, processes: int = 1, keep: bool = False) -> Iterator[Preparation]:
    """Open what a run starts from, build its graph, and cut its steps so that they fit into memory.

    Args:
        settings: of the run.
        processes: that share each batch.
        keep: write a tokenizer that is trained to the directory of the run.

    Raises:
        InputError: the settings do not fit the model, the processes or the memory.
        UnsupportedError: a library is not installed.
    """
    check_settings(settings.data)
    if settings.loop.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UnsupportedError(NO_TENSORBOARD)
    if settings.loop.batch % processes:
        raise InputError(
            f"loop.batch is {settings.loop.batch}: {processes} processes cannot share it equally; take a multiple"
        )

    trained = kept_tokenizer(settings.output / TOKENIZER, settings.data, write=keep)
    with open_start(
        settings.model, seed=settings.seed, texts=read_texts(settings.data), train_tokenizer=trained
    ) as start:
        if settings.data.length > start.spec.context_length:
            raise InputError(
                f"data.length is {settings.data.length}: expected at most {start.spec.context_length}, "
                f"the model's context length"
            )
        schedules = Schedules.of(settings)
        teacher = _teacher_spec(settings, start)
        options = graph_options(settings, start.spec, teacher, frozenset(schedules.weights))
        graph = training_graph(start.spec, options)
        ternary = () if options.weights is BlockWeights.FLOAT else tuple(filter(_is_matrix, graph.parameters))
        plan = _plan(settings, graph, None if teacher is None else _teacher_graph(settings, teacher), processes)
        source = Path(settings.model.source or settings.model.tokenizer or "model.architecture")
        tokenizer = DataTokenizer.from_files(start.tokenizer, vocab_size=start.spec.vocab_size, source=source)
        try:
            yield Preparation(settings, start, tokenizer, schedules, graph, ternary, plan)
        finally:
            tokenizer.close()


def graph_options(
    settings: TrainingSettings, spec: DecoderSpec, teacher: DecoderSpec | None, terms: frozenset[Term]
) -> GraphOptions:
    """What the graph of a run computes.

    Args:
        settings: of the run.
        spec: of what is trained.
        teacher: of the teacher, where there is one.
        terms: of the loss.

    Raises:
        InputError: layers are counted that the model does not have, or heads do not fit.
    """
    model, losses = settings.model, settings.losses
    options = GraphOptions(
        max_length=settings.data.length,
        weights=model.weights,
        activation_bits=model.activation_bits,
        head=model.head,
        groups=layer_groups(settings.quantization, spec.num_hidden_layers) if has_strength(settings) else (),
        terms=terms,
        temperature=losses.temperature,
    )
    if losses.relation is None or teacher is None:
        return options
    heads = relation_heads(losses, spec, teacher)
    return replace(options, relation_layer=relation_layer(losses, spec), relation_heads=heads)


def _is_matrix(name: str) -> bool:
    return name.endswith(".weight") and is_linear(name.removesuffix(".weight"))


def _teacher_spec(settings: TrainingSettings, start: Start) -> DecoderSpec | None:
    """What the teacher is; it is not read yet."""
    losses = settings.losses
    if losses.distillation is None and losses.relation is None:
        return None
    if losses.teacher is None:
        return None if start.origin is None else start.origin.spec
    with open_model(resolve(losses.teacher)) as source:
        if source.spec.vocab_size != start.spec.vocab_size:
            raise InputError(
                f"losses.teacher is {losses.teacher}: its vocab_size is {source.spec.vocab_size}, that of the model "
                f"{start.spec.vocab_size}; a teacher needs the same tokens"
            )
        return source.spec


def _teacher_graph(settings: TrainingSettings, spec: DecoderSpec) -> tuple[ir.Model, int]:
    """The teacher's graph, and the number of its weights."""
    losses = settings.losses
    layer = None if losses.relation is None else relation_layer(losses, spec, "the teacher")
    graph = teacher_graph(spec, settings.data.length, logits=losses.distillation is not None, layer=layer)
    return graph.model, sum(math.prod(shape) for shape in trained_parameters(spec).values())


def _plan(
    settings: TrainingSettings, graph: TrainingGraph, teacher: tuple[ir.Model, int] | None, processes: int
) -> Plan:
    engine = settings.engine
    name: EngineName = choose_engine(engine)
    memory = MemoryModel(
        graph, settings.data.length, moments=_MOMENTS[settings.optimizer.name], engine=name, teacher=teacher
    )
    local = os.environ.get(_LOCAL_SIZE, "1") if processes > 1 else "1"
    here = min(processes, int(local)) if local.isascii() and local.isdigit() and int(local) else 1
    # What is free is shared by the processes of this machine; what the user allows is for each of them.
    budget = engine.memory or free_bytes() // here
    return memory.plan(
        settings.loop.batch // processes, budget, micro_batch=engine.micro_batch, recompute=engine.recompute
    )
