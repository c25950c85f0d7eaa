"""The method for those who name none."""

from __future__ import annotations

from dataclasses import dataclass

from bitnet_onnx.quantization._groups import is_ternary
from bitnet_onnx.quantization.gptq import Gptq
from bitnet_onnx.quantization.least_squares import LeastSquares
from bitnet_onnx.quantization.rtn import Rtn
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import FloatArray, Grid, QuantizedTensor


@dataclass(frozen=True, slots=True)
class Auto:
    """`Gptq` where statistics tell how features go together, else `LeastSquares` for ternary weights and `Rtn`."""

    def __call__(self, weight: FloatArray, grid: Grid, statistics: InputStatistics | None = None) -> QuantizedTensor:
        """Quantize; see `Method`."""
        if statistics is not None and any(len(block) > 1 for block in statistics.moment):
            return Gptq()(weight, grid, statistics)
        return (LeastSquares() if is_ternary(grid) else Rtn())(weight, grid, statistics)
