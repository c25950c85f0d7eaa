"""Scales of features: what is hard to round moves from the inputs of layers into their weights, or back.

The inputs are divided by `s`, which the norm or layer before them takes over, and the columns of all matrices that read
them are multiplied by it. Candidates are those of Xiao et al., "SmoothQuant", 2022, and Lin et al., "AWQ", 2023; the
outputs of the rounded layers on a sample of inputs decide which one is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.activations import quantize_activations
from bitnet_onnx.errors import InputError
from bitnet_onnx.quantization.method import Method
from bitnet_onnx.quantization.rtn import Rtn
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import FloatArray, Grid

#: Exponents in tenths: those tried first, and the largest; the best of each input is then moved by one at a time.
_FIRST: Final = (2, 6)
_LARGEST: Final = 10
#: Beyond this factor a feature would leave the range in which its norm computes well.
_RANGE: Final = 1e3
_TOKENS: Final = 256
#: Bits of weights so fine that a search for their steps would decide nothing.
_FINE: Final = 8
#: The sample is small: a smaller gain may be chance.
_GAIN: Final = 0.99


def find_scaling(
    weights: Sequence[FloatArray],
    statistics: InputStatistics,
    grid: Grid,
    method: Method | None = None,
    activation_bits: int = 8,
    *,
    shared: npt.NDArray[np.int64] | None = None,
) -> FloatArray:
    """Scales with which the layers that read one input lose the least.

    Args:
        weights: `[N_i, K]`, all matrices that read the input.
        statistics: of the input, with a sample.
        grid: that the matrices are going to be rounded to.
        method: how they are rounded; `Rtn` if None, which is quick and tells good scales from bad ones for others too,
            with 8 bits even without its search.
        activation_bits: of the input: 8 or 16, or 0 for floats.
        shared: `[K]`; features of one number get one scale. None: each has its own.

    Returns:
        `s`, float32 `[K]`, positive; all ones where nothing tried lowers the squared error of the outputs by a percent.

    Raises:
        InputError: the sizes do not fit each other, or the sample is empty.
    """
    inputs = _spread(statistics)
    for weight in weights:
        if weight.shape[1] != statistics.features:
            raise InputError(
                f"statistics of {statistics.features} features for a matrix of {weight.shape[1]} columns: "
                "they were collected on another layer or model"
            )
    chosen = np.ones(statistics.features, np.float32)
    trial = _Trial(weights, inputs, statistics, grid, method or Rtn(search=grid.bits < _FINE), activation_bits)
    least = _GAIN * trial.error(chosen)
    best: tuple[_Powers, int] | None = None

    def better(powers: _Powers, exponent: int) -> bool:
        nonlocal chosen, least, best
        scale = powers.scale(exponent)
        error = trial.error(scale)
        if error >= least:
            return False
        chosen, least, best = scale, error, (powers, exponent)
        return True

    for powers in _candidates(weights, statistics, shared):
        for exponent in _FIRST:
            better(powers, exponent)
    if best is not None:
        # The error mostly has one valley along the exponents.
        powers, start = best
        for step in (-1, 1):
            exponent = start + step
            while 1 <= exponent <= _LARGEST and better(powers, exponent):
                exponent += step
    return chosen


class _Trial:
    """Outputs of rounded layers against those of the floats."""

    def __init__(
        self,
        weights: Sequence[FloatArray],
        inputs: FloatArray,
        statistics: InputStatistics,
        grid: Grid,
        method: Method,
        activation_bits: int,
    ) -> None:
        self._weights = weights
        self._inputs = inputs
        self._statistics = statistics
        self._grid = grid
        self._method = method
        self._bits = activation_bits
        # In float64 the choice does not depend on how many threads multiply.
        self._exact = [inputs.astype(np.float64) @ weight.T.astype(np.float64) for weight in weights]

    def error(self, scale: FloatArray) -> float:
        """The squared error of all outputs."""
        statistics = self._statistics.scaled(scale)
        inputs = self._rounded(self._inputs / scale)
        total = 0.0
        for weight, exact in zip(self._weights, self._exact, strict=True):
            rounded = self._method(weight * scale, self._grid, statistics).dequantize()
            outputs = inputs @ rounded.T.astype(np.float64)
            outputs -= exact
            total += float(np.einsum("sn,sn->", outputs, outputs))
        return total

    def _rounded(self, inputs: FloatArray) -> npt.NDArray[np.float64]:
        if not self._bits:
            return inputs.astype(np.float64)
        codes, inverse = quantize_activations(inputs, self._bits)
        return codes / inverse.astype(np.float64)[:, None]


def _spread(statistics: InputStatistics) -> FloatArray:
    sample = statistics.sample
    if not len(sample):
        raise InputError("statistics without a sample of inputs: collect them again")
    return sample[:: -(-len(sample) // _TOKENS)]


@dataclass(frozen=True, slots=True)
class _Powers:
    """`inputs**exponent / reach**against`, the middle of all features being 1.

    Attributes:
        inputs: `[K]`, logarithms of what the inputs reach or usually are.
        reach: `[K]`, logarithms of what the weights reach.
        used: `[K]`, the features that have both; others keep 1.
        divided: whether `against` is one less the exponent, or nothing.
        shared: as `find_scaling` takes it.
    """

    inputs: npt.NDArray[np.float64]
    reach: npt.NDArray[np.float64]
    used: npt.NDArray[np.bool_]
    divided: bool
    shared: npt.NDArray[np.int64] | None

    def scale(self, tenths: int) -> FloatArray:
        """The scales, float32 `[K]`, at an exponent in tenths."""
        exponent = tenths / 10
        logs = exponent * self.inputs - (1 - exponent) * self.reach * self.divided
        # What all features share means nothing.
        logs = np.where(self.used, logs - logs[self.used].mean(), 0)
        scale = np.exp(np.clip(logs, -np.log(_RANGE), np.log(_RANGE)))
        if self.shared is not None:
            count = np.bincount(self.shared)
            middle = np.bincount(self.shared, np.log(scale)) / np.maximum(count, 1)
            scale = np.exp(middle)[self.shared]
        found: FloatArray = scale.astype(np.float32)
        return found


def _candidates(
    weights: Sequence[FloatArray], statistics: InputStatistics, shared: npt.NDArray[np.int64] | None
) -> Iterator[_Powers]:
    """Powers of what an input reaches or usually has, alone and over powers of what its weights reach."""
    energy = np.concatenate([block.diagonal() for block in statistics.moment]).astype(np.float64)
    usual = np.sqrt(np.maximum(energy, 0))
    reach = np.max([np.abs(weight).max(axis=0, initial=0) for weight in weights], axis=0).astype(np.float64)
    for inputs in (statistics.peak.astype(np.float64), usual):
        used = (inputs > 0) & (reach > 0)
        if used.any():
            one, other = (np.log(values, out=np.zeros_like(values), where=used) for values in (inputs, reach))
            for divided in (False, True):
                yield _Powers(one, other, used, divided, shared)
