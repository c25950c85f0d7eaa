"""The interface of all methods, and their names."""

from __future__ import annotations

import enum
from typing import Protocol

from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import FloatArray, Grid, QuantizedTensor


class MethodName(enum.StrEnum):
    """Names of the methods.

    `round` is plain rounding, in which the largest weight of a group sets the step; `rtn` chooses the step with the
    smallest error. `auto` is absmean for ternary; for integers round, and with statistics gptq, or rtn at 8 bits.
    """

    AUTO = "auto"
    ABSMEAN = "absmean"
    ROUND = "round"
    LEAST_SQUARES = "least_squares"
    RTN = "rtn"
    GPTQ = "gptq"


class Method(Protocol):
    """Puts a matrix on a grid.

    Rows do not depend on each other, but where one scale serves the whole matrix: a matrix may be given in parts.
    """

    def __call__(self, weight: FloatArray, grid: Grid, statistics: InputStatistics | None = None) -> QuantizedTensor:
        """Quantize.

        Args:
            weight: float32 `[N, K]`, finite.
            grid: `TERNARY` (perhaps with a group size), whose lowest raw value never occurs, or integers of 2, 4, 6 or
                8 bits; 2-bit integers have the zero point 1, and their scale may be negative.
            statistics: of the inputs; without any, all features count alike.

        Returns:
            The codes and scales on exactly this grid.

        Raises:
            InputError: the method has nothing for this grid, or the statistics are of another width.
        """
        ...
