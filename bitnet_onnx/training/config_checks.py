"""Settings that are sound alone and not together, and files that are not there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bitnet_onnx.errors import InputError, ZooError
from bitnet_onnx.model_zoo import get
from bitnet_onnx.training.settings import (
    BlockWeights,
    HeadWeights,
    LayerOrder,
    LossSettings,
    OptimizerName,
    Ramp,
    TrainingSettings,
)

#: Makes a refusal of its text.
Refusal = Callable[[str], InputError]


def check_settings(settings: TrainingSettings, error: Refusal) -> None:
    """Refuse settings that cannot be carried out.

    Args:
        settings: whose numbers are within their limits.
        error: makes the refusal; it adds the file's name.

    Raises:
        InputError: of `error`.
    """
    _check_model(settings, error)
    _check_data(settings, error)
    _check_loop(settings, error)
    _check_quantization(settings, error)
    _check_losses(settings, error)
    if settings.output.exists() and not settings.output.is_dir():
        raise error(f"output is {settings.output}: a file is there")


def has_strength(settings: TrainingSettings) -> bool:
    """Whether anything of the model is quantized while it is trained."""
    return settings.model.weights is BlockWeights.TERNARY or settings.model.head is HeadWeights.INT8


def _check_model(settings: TrainingSettings, error: Refusal) -> None:
    model = settings.model
    if (model.source is None) == (model.architecture is None):
        what = "none is given" if model.source is None else "both are given"
        raise error(f"[model]: {what} of source and architecture; one of them says what is trained")
    if model.activation_bits not in {0, 8}:
        raise error(f"model.activation_bits is {model.activation_bits}: it must be 8, or 0 for floats")
    if model.source is not None:
        _check_source("model.source", model.source, error)
        if model.tokenizer is not None:
            raise error("model.tokenizer is given: it is for a random start, a model has its own")
    if model.tokenizer is not None and not model.tokenizer.exists():
        raise error(f"model.tokenizer is {model.tokenizer}: there is no such file")


def _check_source(where: str, source: str, error: Refusal) -> None:
    if os.path.lexists(source):
        return
    try:
        get(source)
    except ZooError as cause:
        if Path(source).name == source:
            raise error(f"{where} is {source!r:.60}: there is no such file or directory, and {cause}") from None
        raise error(f"{where} is {source!r:.200}: there is no such file or directory") from None


def _check_data(settings: TrainingSettings, error: Refusal) -> None:
    data = settings.data
    if not data.train:
        raise error("data.train is empty: name at least one file")
    for where, paths in (("train", data.train), ("validation", data.validation)):
        for path in paths:
            if not path.is_file():
                what = "a directory, not a file" if path.is_dir() else "no such file"
                raise error(f"data.{where} names {path}: {what}")
            if not os.access(path, os.R_OK):
                raise error(f"data.{where} names {path}: it may not be read")
        for path, count in Counter(paths).items():
            if count > 1:
                raise error(f"data.{where} names {path} more than once")
    if data.validation and data.holdout:
        raise error(f"data.holdout is {data.holdout:g}, and data.validation names files; give one of them")


def _check_loop(settings: TrainingSettings, error: Refusal) -> None:
    loop, optimizer, engine = settings.loop, settings.optimizer, settings.engine
    if engine.micro_batch and loop.batch % engine.micro_batch:
        raise error(f"loop.batch is {loop.batch}: it must be a multiple of engine.micro_batch, {engine.micro_batch}")
    if loop.evaluate_every and not (settings.data.validation or settings.data.holdout):
        raise error(f"loop.evaluate_every is {loop.evaluate_every}: name data.validation or a data.holdout")
    if loop.patience and not loop.evaluate_every:
        raise error(f"loop.patience is {loop.patience}: it counts evaluations, and loop.evaluate_every is 0")
    if optimizer.warmup >= loop.steps:
        raise error(f"optimizer.warmup is {optimizer.warmup}: it must be below loop.steps, {loop.steps}")
    if optimizer.name is OptimizerName.TERNARY_MUON and settings.model.weights is not BlockWeights.TERNARY:
        raise error(f"optimizer.name is {optimizer.name}: it needs model.weights to be {BlockWeights.TERNARY}")


def _check_quantization(settings: TrainingSettings, error: Refusal) -> None:
    quantization, steps = settings.quantization, settings.loop.steps
    if quantization.order is LayerOrder.SENSITIVITY:
        if quantization.statistics is None:
            raise error("quantization.order is sensitivity: quantization.statistics must name a file")
    elif quantization.statistics is not None:
        raise error(f"quantization.statistics is given, and quantization.order is {quantization.order}")
    if quantization.statistics is not None and not quantization.statistics.is_file():
        raise error(f"quantization.statistics is {quantization.statistics}: no such file")
    if has_strength(settings):
        end = end_of(quantization.strength) + quantization.stride * (quantization.groups - 1)
        if end >= steps:
            raise error(
                f"quantization.strength of the last group ends at step {end}: "
                f"it must end before the run does, at loop.steps = {steps}"
            )


def end_of(ramp: Ramp) -> int:
    """The step from which a ramp stays."""
    return ramp.begin + ramp.steps if ramp.start != ramp.end else 0


def _check_losses(settings: TrainingSettings, error: Refusal) -> None:
    losses = settings.losses
    if not any(ramp is not None and max(ramp.start, ramp.end) > 0 for ramp in _weights(losses)):
        raise error("[losses]: every weight is 0; give one that is not")
    reading = [name for name in ("distillation", "relation") if getattr(losses, name) is not None]
    if losses.teacher is not None:
        if not reading:
            raise error("losses.teacher is given: give a weight of losses.distillation or losses.relation too")
        _check_source("losses.teacher", losses.teacher, error)
    elif reading and settings.model.source is None:
        raise error(f"losses.{reading[0]} is given: it needs losses.teacher where the model starts at random")
    if losses.grid is not None and settings.model.weights is not BlockWeights.TERNARY:
        raise error(f"losses.grid is given: it needs model.weights to be {BlockWeights.TERNARY}")


def _weights(losses: LossSettings) -> tuple[Ramp | None, ...]:
    return losses.cross_entropy, losses.distillation, losses.relation, losses.grid
