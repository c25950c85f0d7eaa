"""Made-up inputs of linear layers, and their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from bitnet_onnx.quantization.statistics import InputStatistics


def correlated(seed: int, tokens: int, features: int) -> np.ndarray:
    """Float32 `[tokens, features]`: features go together, and a few are much larger than the rest."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((tokens, max(1, features // 4)))
    inputs = factors @ rng.standard_normal((factors.shape[1], features)) + rng.standard_normal((tokens, features))
    inputs *= np.exp(rng.standard_normal(features))
    return inputs.astype(np.float32)


def statistics_of(inputs: np.ndarray, blocks: Sequence[int] | None = None) -> InputStatistics:
    """Statistics with the moment in blocks of these sizes, one block when none are given."""
    tokens, features = inputs.shape
    moment = inputs.T.astype(np.float64) @ inputs / tokens
    cuts = np.cumsum([0, *(blocks or (features,))])
    return InputStatistics(
        tokens,
        np.abs(inputs).max(axis=0, initial=0),
        inputs.mean(axis=0),
        tuple(moment[start:stop, start:stop].astype(np.float32) for start, stop in pairwise(cuts)),
        inputs[:: max(1, tokens // 64)].copy(),
    )


def energies_of(statistics: InputStatistics) -> np.ndarray:
    """`E[x^2]` of each feature, float64 `[K]`."""
    return np.concatenate([block.diagonal() for block in statistics.moment]).astype(np.float64)
