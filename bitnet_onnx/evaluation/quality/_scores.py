"""Logits into what is measured: probabilities of what came, and distances between two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.quantized import FloatArray

DoubleArray = npt.NDArray[np.float64]

#: Logits that are worked on in float64 at once: 8 MB.
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """Logits of some positions and what normalizes them.

    Attributes:
        logits: float32 `[positions, vocabulary]`.
        peak: float32 `[positions, 1]`, the largest of each row.
        log_sum: `[positions]`, logarithm of the sum of `exp(logits - peak)`.
    """

    logits: FloatArray
    peak: FloatArray
    log_sum: DoubleArray

    @classmethod
    def of(cls, logits: FloatArray) -> Distribution:
        """The distribution of each row; not finite where a logit is NaN or infinite."""
        peak = logits.max(axis=1, keepdims=True)
        total = np.empty(len(logits), np.float64)
        with np.errstate(invalid="ignore"):
            for rows in _blocks(logits):
                # float32 exponentials are off by 1e-7 and several times faster; the sum must not add to that.
                total[rows] = np.exp(logits[rows] - peak[rows]).sum(axis=1, dtype=np.float64)
            return cls(logits, peak, np.log(total))

    def surprise(self, targets: npt.NDArray[np.int64]) -> DoubleArray:
        """`-log p` of one token a row, in nats."""
        given = np.take_along_axis(self.logits, targets[:, None], axis=1).astype(np.float64)
        return self.log_sum - (given - self.peak)[:, 0]

    def best(self) -> npt.NDArray[np.int64]:
        """The likeliest token of each row."""
        best: npt.NDArray[np.int64] = self.logits.argmax(axis=1)
        return best

    def divergence(self, other: Distribution) -> DoubleArray:
        """`sum p (log p - log q)` of each row in nats, p being this one and q the other.

        Kullback and Leibler, "On Information and Sufficiency", 1951.
        """
        result = np.empty(len(self.logits), np.float64)
        for rows in _blocks(self.logits):
            p = np.exp(self.logits[rows] - self.peak[rows]).astype(np.float64)
            p /= p.sum(axis=1, keepdims=True)
            difference = self.logits[rows] - self.peak[rows].astype(np.float64)
            difference -= other.logits[rows]
            difference += other.peak[rows]
            result[rows] = np.einsum("ij,ij->i", p, difference)
        result += other.log_sum - self.log_sum
        # Rounding may leave a sum of nothing just below it.
        return np.maximum(result, 0.0)


def _blocks(logits: FloatArray) -> list[slice]:
    step = max(1, _BLOCK // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]
