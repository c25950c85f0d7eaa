"""A run for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.training.monitoring.quantization import QuantizationRecord
from bitnet_onnx.training.records import CheckpointRecord, EvaluationRecord, RollbackRecord, StepRecord

NO_TENSORBOARD: Final = "loop.tensorboard = true needs tensorboardX: pip install 'bitnet-onnx[train]'"


class TensorBoardLog:
    """Writes event files: `train/...`, `validation/...` and, for each ternary matrix, `quantization/.../<parameter>`.

    Args:
        directory: of the event files.
        every: steps between two records of steps.

    Raises:
        UnsupportedError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path, *, every: int = 1) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UnsupportedError(NO_TENSORBOARD) from None
        self._open = SummaryWriter
        self._directory = directory
        self._every = every
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Begin a file; what earlier ones say of later steps is hidden."""
        self.close()
        # Names are told apart by seconds alone.
        suffix = f".{step}"
        purge = step + 1 if step else None
        self._writer = self._open(str(self._directory), purge_step=purge, flush_secs=10, filename_suffix=suffix)

    def step(self, record: StepRecord) -> None:
        """Losses, rate, strengths, the gradient's norm and tokens a second."""
        if record.step % self._every:
            return
        values = {
            "loss": record.loss,
            "learning_rate": record.rate,
            "gradient_norm": record.gradient_norm,
            "tokens_per_second": record.positions / record.seconds if record.seconds else 0.0,
            **{f"loss/{term}": value for term, value in record.terms.items()},
            **{f"weight/{term}": value for term, value in record.weights.items()},
            **{f"strength/{group}": value for group, value in enumerate(record.strength)},
        }
        for name, value in values.items():
            self._add(f"train/{name}", value, record.step)

    def evaluation(self, record: EvaluationRecord) -> None:
        """Loss and perplexity."""
        self._add("validation/loss", record.loss, record.step)
        self._add("validation/perplexity", record.perplexity, record.step)

    def checkpoint(self, record: CheckpointRecord) -> None:
        """TensorBoard has no word for it."""

    def rollback(self, record: RollbackRecord) -> None:
        """Begin a file that hides what no longer holds."""
        self.begin(record.to)

    def quantization(self, record: QuantizationRecord) -> None:
        """Flips, zeros, drift of the scale, and noise of each matrix."""
        for name, layer in record.layers.items():
            if layer.flips is not None:
                self._add(f"quantization/flips/{name}", layer.flips, record.step)
            for what, value in (("zeros", layer.zeros), ("drift", layer.drift), ("sqnr", layer.sqnr)):
                self._add(f"quantization/{what}/{name}", value, record.step)

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, name: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)
