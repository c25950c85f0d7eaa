"""Gradients and losses of one step, and the loss of an evaluation, over all processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.engines.engine import float_input
from bitnet_onnx.training.graph.options import (
    INPUT_IDS,
    LABELS,
    LOSS,
    NORMALIZER,
    POSITIONS,
    STRENGTH,
    Term,
    loss_output,
    weight_input,
)
from bitnet_onnx.training.parts import Batch, Parts, TokenArray
from bitnet_onnx.training.settings import IGNORED


@dataclass(frozen=True, slots=True)
class StepLosses:
    """Sums over all processes.

    Attributes:
        loss: weighted.
        terms: each before it is weighted.
        tokens: labelled ones.
        positions: all.
        stopping: a process was asked to stop.
    """

    loss: float
    terms: dict[Term, float]
    tokens: int
    positions: int
    stopping: bool


@dataclass(frozen=True, slots=True)
class Validated:
    """Cross entropy in nats a token, tokens that were predicted, and seconds that it took."""

    loss: float
    tokens: int
    seconds: float


def accumulate(parts: Parts, batch: int, step: int, *, stopping: bool) -> StepLosses:
    """Take the next batch, and leave the gradients of all processes in the store.

    Args:
        parts: of the run.
        batch: sequences of all processes.
        step: for the schedules.
        stopping: this process was asked to stop.
    """
    taken = parts.stream.next(batch)
    counted = parts.processes.sum_scalars([float(_labelled(taken.labels)), float(taken.labels.size)])
    tokens, positions = (int(value) for value in counted)
    parts.store.gradients.fill(0)
    weights = parts.schedules.term_weights(step)
    names = [LOSS, *(loss_output(term) for term in weights)]
    sums = dict.fromkeys(names, 0.0)
    for ids, labels in _slices(taken, parts.micro_batch):
        inputs = _token_inputs(ids, labels, parts.schedules.strength(step), max(tokens, 1))
        inputs[POSITIONS] = float_input(positions)
        for term, weight in weights.items():
            inputs[weight_input(term)] = float_input(weight)
        if parts.teacher is not None:
            inputs |= parts.teacher(ids)
        losses = parts.engine.accumulate(inputs)
        for name in names:
            sums[name] += losses[name]
    parts.processes.sum(parts.store.gradients)
    loss, *terms, stops = parts.processes.sum_scalars([*sums.values(), float(stopping)])
    return StepLosses(loss, dict(zip(weights, terms, strict=True)), tokens, positions, stops > 0)


def validate(parts: Parts, batch: int, limit: int) -> Validated:
    """The cross entropy of the validation data, with the whole model quantized.

    Args:
        parts: of the run, with validation data.
        batch: sequences at once.
        limit: sequences altogether.

    Raises:
        InputError: nothing in the data is to be predicted.
    """
    begun = time.perf_counter()
    total, tokens = 0.0, 0
    for taken in parts.validation.batches(batch, limit=limit) if parts.validation is not None else ():
        count = _labelled(taken.labels)
        if not count:
            continue
        inputs = _token_inputs(taken.input_ids, taken.labels, parts.schedules.full_strength(), count)
        total += parts.engine.evaluate(inputs)[loss_output(Term.CROSS_ENTROPY)] * count
        tokens += count
    total, counted = parts.processes.sum_scalars([total, float(tokens)])
    if not counted:
        raise InputError("data.validation has no tokens to predict; name other files")
    return Validated(total / counted, int(counted), time.perf_counter() - begun)


def _token_inputs(
    ids: TokenArray, labels: TokenArray, strength: FloatArray | None, normalizer: int
) -> dict[str, npt.NDArray[Any]]:
    """What the cross entropy reads."""
    inputs: dict[str, npt.NDArray[Any]] = {INPUT_IDS: ids, LABELS: labels, NORMALIZER: float_input(normalizer)}
    if strength is not None:
        inputs[STRENGTH] = strength
    return inputs


def _slices(batch: Batch, size: int) -> Iterator[tuple[TokenArray, TokenArray]]:
    """The sequences of a batch, so many at once."""
    for start in range(0, len(batch.input_ids), size or len(batch.input_ids)):
        place = slice(start, start + (size or len(batch.input_ids)))
        yield batch.input_ids[place], batch.labels[place]


def _labelled(labels: TokenArray) -> int:
    return int(np.count_nonzero(labels != IGNORED))
