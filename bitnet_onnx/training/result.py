"""What a run came to, and its model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from bitnet_onnx.metrics import perplexity
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.export import Trained, write_checkpoint
from bitnet_onnx.training.loop import Outcome
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.parts import Parts
from bitnet_onnx.training.preparation import Preparation
from bitnet_onnx.training.records import End
from bitnet_onnx.training.run_directory import MODEL
from bitnet_onnx.training.start import Start


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
        return None if self.loss is None else perplexity(self.loss)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        found = self.perplexity
        return {
            **asdict(self),
            "directory": str(self.directory),
            "model": None if self.model is None else str(self.model),
            "perplexity": found if found is None or math.isfinite(found) else None,
        }


def write_result(prepared: Preparation, parts: Parts, outcome: Outcome) -> TrainingResult:
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
