"""The methods by name."""

from __future__ import annotations

from typing import Final

from bitnet_onnx.quantization.absmean import Absmean
from bitnet_onnx.quantization.auto import Auto
from bitnet_onnx.quantization.gptq import Gptq
from bitnet_onnx.quantization.least_squares import LeastSquares
from bitnet_onnx.quantization.method import Method, MethodName
from bitnet_onnx.quantization.rtn import Rtn

#: Each with its default options.
METHODS: Final[dict[MethodName, Method]] = {
    MethodName.AUTO: Auto(),
    MethodName.ABSMEAN: Absmean(),
    MethodName.LEAST_SQUARES: LeastSquares(),
    MethodName.ROUND: Rtn(search=False),
    MethodName.RTN: Rtn(),
    MethodName.GPTQ: Gptq(),
}
