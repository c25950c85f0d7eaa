"""The methods by name; what `auto` stands for is the policy's to say."""

from __future__ import annotations

from typing import Final

from bitnet_onnx.quantization.absmean import Absmean
from bitnet_onnx.quantization.gptq import Gptq
from bitnet_onnx.quantization.least_squares import LeastSquares
from bitnet_onnx.quantization.method import Method, MethodName
from bitnet_onnx.quantization.rtn import Rtn

#: Each with its default options.
METHODS: Final[dict[MethodName, Method]] = {
    MethodName.ABSMEAN: Absmean(),
    MethodName.LEAST_SQUARES: LeastSquares(),
    MethodName.ROUND: Rtn(search=False),
    MethodName.RTN: Rtn(),
    MethodName.GPTQ: Gptq(),
}
