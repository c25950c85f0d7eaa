"""What was measured in each window, and the means and standard errors that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bitnet_onnx.evaluation.quality._scores import DoubleArray


@dataclass(slots=True)
class Sums:
    """Sums over the windows of one text, one entry a window.

    Attributes:
        tokens: that were scored.
        bytes: of these tokens.
        surprise: nats.
        reference: nats under the reference, if there is one.
        divergence: nats from the reference.
        agreeing: tokens of which both models think the same likeliest.
        divergences: float32, of each token.
    """

    tokens: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    surprise: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    agreeing: list[int] = field(default_factory=list)
    divergences: list[npt.NDArray[np.float32]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean a token.

    Attributes:
        value: of all tokens.
        error: its standard error; None with fewer than two windows.
    """

    value: float
    error: float | None


def mean(texts: Sequence[tuple[Sequence[float], Sequence[int]]]) -> Mean:
    """The mean a token over windows, each text being a stratum of its own.

    Windows are what is independent of each other, tokens are not: the error is that of a ratio of sums over windows
    (Cochran, "Sampling Techniques", 1977, chapter 6).

    Args:
        texts: of each text the sums of its windows, and their tokens.
    """
    tokens = sum(sum(counts) for _, counts in texts)
    value = math.fsum(math.fsum(sums) for sums, _ in texts) / tokens
    variance = 0.0
    for sums, counts in texts:
        windows = len(sums)
        if windows < 2:
            return Mean(value, None)
        own = math.fsum(sums) / sum(counts)
        rest: DoubleArray = np.array(sums, np.float64) - own * np.array(counts, np.float64)
        variance += windows / (windows - 1) * float(np.square(rest).sum())
    return Mean(value, math.sqrt(variance) / tokens)
