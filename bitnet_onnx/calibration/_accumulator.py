"""Running sums over the inputs of one linear layer."""

from __future__ import annotations

from typing import Self

import numpy as np

from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import FloatArray


class Accumulator:
    """Takes inputs window by window.

    Args:
        features: K.
        block: features of one block of the second moment at most; blocks are as even as can be.
    """

    def __init__(self, features: int, block: int) -> None:
        count = -(-features // block)
        self._borders = [features * index // count for index in range(count + 1)]
        self.tokens = 0
        self._peak = np.zeros(features, np.float32)
        self._sum = np.zeros(features, np.float64)
        self._moment = [
            np.zeros((stop - start,) * 2, np.float32)
            for start, stop in zip(self._borders, self._borders[1:], strict=False)
        ]
        self._sample: list[FloatArray] = []

    def add(self, x: FloatArray, kept: int) -> None:
        """The inputs `[T, K]` of one window, of which `kept` tokens go to the sample, spread evenly."""
        self.tokens += len(x)
        np.maximum(self._peak, np.abs(x).max(axis=0, initial=0), out=self._peak)
        self._sum += x.sum(axis=0, dtype=np.float64)
        for moment, start, stop in zip(self._moment, self._borders, self._borders[1:], strict=False):
            part = x[:, start:stop]
            moment += part.T @ part
        if kept:
            self._sample.append(x[np.linspace(0, len(x) - 1, kept).round().astype(int)])

    def statistics(self) -> InputStatistics:
        """What was seen so far."""
        tokens = max(self.tokens, 1)
        features = len(self._peak)
        return InputStatistics(
            self.tokens,
            self._peak.copy(),
            (self._sum / tokens).astype(np.float32),
            tuple(moment / np.float32(tokens) for moment in self._moment),
            np.concatenate(self._sample) if self._sample else np.zeros((0, features), np.float32),
        )

    @classmethod
    def resumed(cls, seen: InputStatistics, block: int) -> Self:
        """Goes on from what was seen before."""
        accumulator = cls(seen.features, block)
        accumulator.tokens = seen.tokens
        accumulator._peak = seen.peak.copy()
        accumulator._sum = seen.mean.astype(np.float64) * seen.tokens
        accumulator._moment = [moment * np.float32(seen.tokens) for moment in seen.moment]
        accumulator._sample = [seen.sample] if len(seen.sample) else []
        return accumulator
