"""What quantization does while weights move: flips, zeros, scales and noise, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bitnet_onnx.by_rows import MatrixRows, to_ternary
from bitnet_onnx.errors import InputError
from bitnet_onnx.metrics import decibels
from bitnet_onnx.quantized import TERNARY, ByteArray
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.records import CheckpointRecord, EvaluationRecord, RollbackRecord, StepRecord


@dataclass(frozen=True, slots=True)
class LayerQuantization:
    """One ternary matrix.

    Attributes:
        flips: share of its codes that differ from those of the last measurement; None at the first.
        zeros: share of codes that are zero.
        scale: of the matrix, its mean magnitude.
        drift: of the scale since the start, relative to it.
        sqnr: signal to quantization noise of the master weights, in decibels.
    """

    flips: float | None
    zeros: float
    scale: float
    drift: float
    sqnr: float


@dataclass(frozen=True, slots=True)
class QuantizationRecord:
    """All ternary matrices after a step.

    Attributes:
        step: steps done.
        layers: by the name of the parameter.
    """

    step: int
    layers: Mapping[str, LayerQuantization]


class QuantizationMonitor(Protocol):
    """Watches quantization."""

    def quantization(self, record: QuantizationRecord) -> None:
        """A measurement is done."""
        ...


class QuantizationMetrics:
    """Measures the masters of ternary matrices, as they would be converted now.

    The codes of the last measurement are kept: one byte a weight.

    Args:
        store: the masters.
        names: of the matrices, float32 `[N, K]` each.
        scales: at the start of the run, where this is a later part of it; None takes those of the first measurement.
    """

    def __init__(self, store: ParameterStore, names: Iterable[str], scales: Mapping[str, float] | None = None) -> None:
        self._store = store
        self._names = tuple(names)
        self._scales = dict(scales or {})
        self._codes: dict[str, ByteArray] = {}
        for name in self._names:
            if len(store.shapes[name]) != 2:
                raise InputError(f"{name} has the shape {list(store.shapes[name])}: only matrices are ternary")

    def measure(self) -> dict[str, LayerQuantization]:
        """Every matrix by name.

        `flips` and `drift` are of the codes and scales that the last call and the first saw.
        """
        return {name: self._measure(name) for name in self._names}

    def _measure(self, name: str) -> LayerQuantization:
        weight = self._store.value(name)
        rows, columns = weight.shape
        quantized, error = to_ternary(MatrixRows((rows, columns), lambda start, stop: weight[start:stop]))
        codes, scale = quantized.raw, float(quantized.scale[0])
        last = self._codes.get(name)
        self._codes[name] = codes
        first = self._scales.setdefault(name, scale)
        size = max(codes.size, 1)
        return LayerQuantization(
            flips=None if last is None else np.count_nonzero(codes != last) / size,
            zeros=np.count_nonzero(codes == TERNARY.zero_point) / size,
            scale=scale,
            drift=scale / first - 1,
            sqnr=decibels(error),
        )


class MeasuringMonitor:
    """Measures every so many steps, and tells others.

    Args:
        metrics: what is measured.
        every: steps.
        monitors: who is told.
    """

    def __init__(self, metrics: QuantizationMetrics, every: int, monitors: Iterable[QuantizationMonitor]) -> None:
        self._metrics = metrics
        self._every = every
        self._monitors = tuple(monitors)

    def begin(self, step: int) -> None:
        """Measure the start; a run that goes on counts its flips from here."""
        if step == 0:
            self._tell(step)
        else:
            self._metrics.measure()

    def step(self, record: StepRecord) -> None:
        """Measure, if it is time to."""
        if record.step % self._every == 0:
            self._tell(record.step)

    def evaluation(self, _: EvaluationRecord) -> None:
        """Nothing to measure."""

    def checkpoint(self, _: CheckpointRecord) -> None:
        """Nothing to measure."""

    def rollback(self, _: RollbackRecord) -> None:
        """Codes are again those of the checkpoint: the next flips count from there."""
        self._metrics.measure()

    def close(self) -> None:
        """Nothing is open."""

    def _tell(self, step: int) -> None:
        record = QuantizationRecord(step, self._metrics.measure())
        for monitor in self._monitors:
            monitor.quantization(record)
