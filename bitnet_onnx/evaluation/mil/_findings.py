"""What half precision does not hold: which operation, how much of it, and what it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.evaluation.mil._call import Value
from bitnet_onnx.evaluation.mil._types import Array
from bitnet_onnx.evaluation.mil.program import Operation

#: Of one run; what comes after the first operations that overflow follows from them.
MAX_FINDINGS: Final = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """A value that arithmetic in half precision does not give as it should.

    Attributes:
        operation: its name.
        type: its type, such as `mul`.
        what: `overflow`: finite values became infinite; `nan`: values became not a number, which no input was.
        within: what within the operation, such as the scores of attention; empty for its output.
        count: of such elements.
        index: of the first.
        largest: the largest magnitude before it was rounded; with `nan` zero.
        inputs: the largest finite magnitude of each input.
    """

    operation: str
    type: str
    what: str
    within: str
    count: int
    index: tuple[int, ...]
    largest: float
    inputs: Mapping[str, float]

    def __str__(self) -> str:
        inputs = ", ".join(f"{name} up to {value:.6g}" for name, value in self.inputs.items())
        place = f"{self.within} of " if self.within else ""
        head = f"{place}{self.type} {self.operation}: "
        if self.what == "nan":
            return f"{head}{self.count} values are not numbers, the first at {list(self.index)}; {inputs}"
        return f"{head}{self.count} values up to {self.largest:.6g}, the first at {list(self.index)}; {inputs}"


def half(values: Array) -> Array:
    """Rounded to half precision, as single precision."""
    return values.astype(np.float16).astype(np.float32)


def examine(
    operation: Operation,
    values: Mapping[str, Sequence[Value]],
    array: Array,
    rounded: Array,
    within: str,
) -> list[Finding]:
    """What is wrong with a result that is not all finite.

    Args:
        operation: that gave it.
        values: what the operation was given.
        array: the result.
        rounded: the result as it is held.
        within: what within the operation it is; empty for its output.
    """
    given = [(name, value.data) for name, all_of in values.items() for value in all_of]
    arrays = {name: data for name, data in given if isinstance(data, np.ndarray) and data.dtype.kind == "f"}
    # Infinite where no input was: too large for single precision, too.
    finite = all(np.isfinite(data).all() for data in arrays.values())
    overflow = np.isinf(rounded) & (finite | np.isfinite(array))
    known = any(np.isnan(data).any() for data in arrays.values())
    found: list[Finding] = []
    for what, wrong in (("overflow", overflow), ("nan", np.isnan(rounded) & (not known))):
        count = int(np.count_nonzero(wrong))
        if count:
            first = tuple(int(place) for place in np.unravel_index(int(wrong.argmax()), wrong.shape))
            largest = float(np.abs(array[wrong]).max()) if what == "overflow" else 0.0
            inputs = {name: _largest(arrays[name]) for name in sorted(arrays)}
            found.append(Finding(operation.name, operation.type, what, within, count, first, largest, inputs))
    return found


def _largest(values: Array) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0
