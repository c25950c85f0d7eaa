"""Rounding with the straight-through estimator: values go part of the way to the grid, gradients pass as they are.

`y = x + stop(strength * (q - x))`: Bengio, Leonard and Courville, "Estimating or Propagating Gradients Through
Stochastic Neurons for Conditional Computation", 2013; the strength is that of progressive quantization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from bitnet_onnx.activations import PEAKS
from bitnet_onnx.training.graph._builder import Attributes, Builder
from bitnet_onnx.training.graph.options import STRENGTH

_FLOOR: Final = 1e-5
_INT8: Final = 128
_PEAK: Final = PEAKS[8]
#: Its neighbours in float32 are 1 away, and so are those of all numbers 2^22 around it.
_NO_FRACTION: Final = 1.5 * 2**23
_LAST: Final[Attributes] = {"axes": [-1], "keepdims": 1}


@dataclass(frozen=True, slots=True)
class Rounded:
    """A ternary matrix.

    Attributes:
        weight: float `[N, K]`.
        nearest: its points of the grid, float `[N, K]`.
        inverse: of their step, float scalar.
        size: number of weights.
    """

    weight: ir.Value
    nearest: ir.Value
    inverse: ir.Value
    size: int


class Quantizer:
    """Emits straight-through rounding, with the arithmetic of `bitnet_onnx.ternary`, `.integer` and `.activations`.

    Args:
        builder: where the nodes go.
    """

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._strengths: dict[int, ir.Value] = {}
        #: All ternary matrices.
        self.ternary: Final[list[Rounded]] = []

    def strength(self, group: int) -> ir.Value:
        """The strength of a group of layers, float scalar."""
        if group not in self._strengths:
            build = self._builder
            strengths = build.input(STRENGTH, ir.DataType.FLOAT, ["groups"])
            inputs = [strengths, build.int_scalar(group)]
            self._strengths[group] = build.node(f"/quantization/strength_{group}/Gather", inputs, {"axis": 0})
        return self._strengths[group]

    def weight(self, path: str, weight: ir.Value, size: int, strength: ir.Value) -> ir.Value:
        """`q = clip(round(w / m), -1, 1) m`, with `m` the mean magnitude of the matrix or 1e-5.

        Formula: the b1.58 quantizer (Ma et al., "The Era of 1-bit LLMs", 2024).

        Args:
            path: module path.
            weight: float `[N, K]`.
            size: `N K`.
            strength: of the rounding.
        """
        build = self._builder
        magnitudes = build.node(f"{path}/Abs", [weight])
        # Row by row: one sum over a million numbers would lose digits.
        rows = build.node(f"{path}/rows/ReduceSum", [magnitudes, build.ints(1)], {"keepdims": 0})
        total = build.node(f"{path}/ReduceSum", [rows, build.ints(0)], {"keepdims": 0})
        mean = build.node(f"{path}/mean/Div", [total, build.scalar(size)])
        # What is divided by is a reciprocal, as in a conversion: the codes have to be the same.
        inverse = build.node(f"{path}/Reciprocal", [build.node(f"{path}/Max", [mean, build.scalar(_FLOOR)])])
        step = build.node(f"{path}/step/Reciprocal", [inverse])
        rounded = self._round(path, build.node(f"{path}/steps/Mul", [weight, inverse]))
        codes = build.node(f"{path}/Clip", [rounded, build.scalar(-1), build.scalar(1)])
        nearest = build.node(f"{path}/nearest/Mul", [codes, step])
        self.ternary.append(Rounded(weight, nearest, inverse, size))
        return self._toward(path, weight, nearest, strength)

    def rows(self, path: str, rows: ir.Value, strength: ir.Value) -> ir.Value:
        """Rows on the 8-bit grid of `bitnet_onnx.integer`: the weight of largest magnitude is -128 steps.

        Args:
            path: module path.
            rows: float `[N, K]`.
            strength: of the rounding.
        """
        build = self._builder
        high = build.node(f"{path}/ReduceMax", [rows], _LAST)
        low = build.node(f"{path}/ReduceMin", [rows], _LAST)
        above = build.node(f"{path}/Greater", [high, build.node(f"{path}/Neg", [low])])
        end = build.node(f"{path}/end/Where", [above, high, low])
        step = build.node(f"{path}/step/Mul", [end, build.scalar(-1 / _INT8)])
        magnitude = build.node(f"{path}/Abs", [step])
        # The step of zeros, or one that underflows, has no reciprocal: all codes are 0.
        usable = build.node(f"{path}/GreaterOrEqual", [magnitude, build.scalar(float(np.finfo(np.float32).tiny))])
        reciprocal = build.node(f"{path}/Reciprocal", [step])
        inverse = build.node(f"{path}/inverse/Where", [usable, reciprocal, build.scalar(0)])
        rounded = self._round(path, build.node(f"{path}/steps/Mul", [rows, inverse]))
        codes = build.node(f"{path}/Clip", [rounded, build.scalar(-_INT8), build.scalar(_INT8 - 1)])
        return self._toward(path, rows, build.node(f"{path}/nearest/Mul", [codes, step]), strength)

    def activations(self, path: str, x: ir.Value, strength: ir.Value) -> ir.Value:
        """`q = round(x s) / s`, with `s` 127 over the token's largest magnitude or 1e-5.

        Args:
            path: module path.
            x: float `[tokens, K]`.
            strength: of the rounding.
        """
        build = self._builder
        high = build.node(f"{path}/ReduceMax", [x], _LAST)
        low = build.node(f"{path}/Neg", [build.node(f"{path}/ReduceMin", [x], _LAST)])
        largest = build.node(f"{path}/Max", [high, low, build.scalar(_FLOOR)])
        peak = build.scalar(_PEAK)
        steps = build.node(f"{path}/steps/Mul", [x, build.node(f"{path}/inverse/Div", [peak, largest])])
        step = build.node(f"{path}/step/Div", [largest, peak])
        # Two roundings cannot carry the largest value to the next integer: nothing needs to be clipped.
        nearest = build.node(f"{path}/nearest/Mul", [self._round(path, steps), step])
        return self._toward(path, x, nearest, strength)

    def _round(self, path: str, x: ir.Value) -> ir.Value:
        """The nearest integers, half to even, of numbers below 2^22; larger ones come out as large.

        Where float32 has no digits behind the point, a sum is rounded to integers. Operator Round takes ten times as
        long, and onnxruntime-training takes QuantizeLinear for something else.
        """
        build = self._builder
        integer = build.node(f"{path}/integer/Add", [x, build.scalar(_NO_FRACTION)])
        return build.node(f"{path}/round/Sub", [integer, build.scalar(_NO_FRACTION)])

    def _toward(self, path: str, x: ir.Value, nearest: ir.Value, strength: ir.Value) -> ir.Value:
        build = self._builder
        distance = build.node(f"{path}/Sub", [nearest, x])
        part = build.node(f"{path}/strength/Mul", [distance, strength])
        return build.node(f"{path}/Add", [x, build.stop(path, part)])
