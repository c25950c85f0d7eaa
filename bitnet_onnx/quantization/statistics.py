"""What was seen of the inputs of linear layers while a model read text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class InputStatistics:
    """The inputs `x` of one linear layer over many tokens.

    Attributes:
        tokens: how many were seen.
        peak: `[K]`, the largest magnitude of each feature.
        mean: `[K]`, of each feature.
        moment: the mean of `x x^T` in blocks on its diagonal, `[b, b]` each, that cover K features in order; what lies
            beside the blocks counts as zero.
        sample: `[S, K]`, the inputs at some of the tokens, spread evenly.

    Raises:
        InputError: the sizes do not fit each other.
    """

    tokens: int
    peak: FloatArray
    mean: FloatArray
    moment: tuple[FloatArray, ...]
    sample: FloatArray

    def __post_init__(self) -> None:
        features = self.features
        blocks = [block.shape for block in self.moment]
        if (
            self.peak.shape != (features,)
            or self.mean.shape != (features,)
            or any(len(shape) != 2 or shape[0] != shape[1] for shape in blocks)
            or sum(shape[0] for shape in blocks) != features
        ):
            raise InputError(
                f"statistics of {features} features: peak {list(self.peak.shape)}, mean {list(self.mean.shape)}, "
                f"moment in blocks of {[shape[0] for shape in blocks]}"
            )

    @property
    def features(self) -> int:
        """K."""
        return int(self.sample.shape[1])


class Calibration(Protocol):
    """Statistics of a model's linear layers by role (`layers.0.attn.q_proj`)."""

    def of(self, role: str, /) -> InputStatistics | None:
        """Those of one layer's input, or None where nothing was collected."""
        ...
