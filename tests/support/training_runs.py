"""Records of a run that never was."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from bitnet_onnx.training.monitoring import JsonLog, LayerQuantization, QuantizationRecord
from bitnet_onnx.training.records import EvaluationRecord, StepRecord


def step_record(step: int, *, loss: float = 2.0, seconds: float = 0.5) -> StepRecord:
    """A step with a loss."""
    return StepRecord(
        step=step,
        loss=loss,
        terms={"cross_entropy": loss, "distillation": loss / 2},
        weights={"cross_entropy": 1.0, "distillation": 0.5},
        rate=1e-3 * min(1.0, step / 20),
        strength=(min(1.0, step / 100), min(1.0, max(0, step - 50) / 100)),
        gradient_norm=0.7,
        clipped=False,
        tokens=500,
        positions=512,
        total_positions=512 * step,
        seconds=seconds,
    )


def quantization_record(step: int) -> QuantizationRecord:
    """Seven matrices of two layers."""
    kinds = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
    layers = {
        f"layers.{layer}.{kind}_proj.weight": LayerQuantization(
            flips=None if step == 0 else 0.02 * math.exp(-step / 200) * (1 + index / 10),
            zeros=0.31 + 0.01 * index + step * 1e-5,
            scale=0.02,
            drift=step * 1e-4 * (index - 3),
            sqnr=5.5 + 0.1 * index,
        )
        for layer in range(2)
        for index, kind in enumerate(kinds)
    }
    return QuantizationRecord(step, layers)


def write_run(directory: Path, steps: int = 60) -> Path:
    """The log of a run of so many steps; returns the directory."""
    log = JsonLog(directory / "log.jsonl", {"loop.steps": str(steps), "loop.batch": "8", "data.train": "<b>.txt"})
    log.begin(0)
    log.quantization(quantization_record(0))
    noise = np.random.default_rng(0)
    for step in range(1, steps + 1):
        log.step(step_record(step, loss=1.5 + 4 * math.exp(-step / 80) + 0.2 * noise.normal()))
        if step % 20 == 0:
            log.quantization(quantization_record(step))
            loss = 1.6 + 4 * math.exp(-step / 80)
            log.evaluation(EvaluationRecord(step, loss, math.exp(loss), 4096, best=True, seconds=1.0))
    log.result({"packed_perplexity": 5.25, "packed_bytes": 2_000_000})
    log.close()
    return directory
