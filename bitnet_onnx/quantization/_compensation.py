"""Rounding column by column, later columns making up for the errors of earlier ones."""

from __future__ import annotations

from typing import Final

import numpy as np

from bitnet_onnx.quantization._factor import Order, Wide

#: Columns that are updated one by one, and then those that wait for a product of matrices.
_INNER: Final = 32
_OUTER: Final = 128


def compensated(weight: Wide, step: Wide, members: Order, feedback: Wide, low: int, high: int) -> Wide:
    """Codes of one block of columns.

    Args:
        weight: `[b, n]`, columns first, in the order of rounding.
        step: of the groups, `[groups, n]`; not zero.
        members: `[b]`, the group of each column.
        feedback: `[b, b]`, see `_factor.feedback`.
        low: smallest code.
        high: largest code.

    Returns:
        `[b, n]`.
    """
    size = len(weight)
    inverse = 1 / step
    target, error, codes = weight.copy(), np.empty_like(weight), np.empty_like(weight)
    spread = np.empty((_INNER, weight.shape[1]))
    for start in range(0, size, _OUTER):
        stop = min(start + _OUTER, size)
        for first in range(start, stop, _INNER):
            last = min(first + _INNER, stop)
            for k in range(first, last):
                group = members[k]
                code = codes[k]
                np.multiply(target[k], inverse[group], out=code)
                np.rint(code, out=code)
                np.clip(code, low, high, out=code)
                np.multiply(code, step[group], out=error[k])
                np.subtract(weight[k], error[k], out=error[k])
                later = spread[: last - k - 1]
                np.multiply(feedback[k, k + 1 : last, None], error[k], out=later)
                target[k + 1 : last] += later
            if last < stop:
                target[last:stop] += feedback[first:last, last:stop].T @ error[first:last]
        if stop < size:
            target[stop:] += feedback[start:stop, stop:].T @ error[start:stop]
    return codes
