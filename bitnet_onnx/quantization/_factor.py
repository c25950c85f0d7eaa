"""The second moment of a layer's inputs, factored for error compensation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.quantized import FloatArray

Wide = npt.NDArray[np.float64]
Order = npt.NDArray[np.intp]

_MORE: Final = 10.0
_TRIES: Final = 4


@dataclass(frozen=True, slots=True)
class Moment:
    """One block of the moment, its mean energy set to 1.

    Attributes:
        columns: which columns of the matrix it is of.
        matrix: float64 `[b, b]`, symmetric.
        gain: what its mean energy was.
    """

    columns: slice
    matrix: Wide
    gain: float


def moments(blocks: tuple[FloatArray, ...]) -> list[Moment]:
    """The blocks in float64; a block of zeros is the unit matrix with a gain of zero."""
    found = []
    start = 0
    for block in blocks:
        matrix = block.astype(np.float64)
        # What was summed up in float32 is symmetric but for its last bits.
        matrix += matrix.T.copy()
        gain = float(matrix.diagonal().mean()) if len(matrix) else 0.0
        if gain > 0:
            matrix /= gain
        else:
            matrix = np.eye(len(matrix))
        found.append(Moment(slice(start, start + len(matrix)), matrix, max(gain, 0.0) / 2))
        start += len(matrix)
    return found


def lone_energy(matrix: Wide, damping: float) -> Wide:
    """What of each feature's energy the other features cannot tell, `[b]`: `1 / diag(H^-1)`.

    An error in a column costs this much once all others have made up for it as well as they can.
    """
    try:
        inverse = np.linalg.inv(matrix + np.diag(np.full(len(matrix), damping))).diagonal()
    except np.linalg.LinAlgError:
        return matrix.diagonal().copy()
    energy: Wide = matrix.diagonal().copy()
    np.divide(1.0, inverse, out=energy, where=(inverse > 0) & np.isfinite(inverse))
    return energy


def feedback(matrix: Wide, damping: float) -> Wide:
    """How errors in columns already rounded are to be made up for in later ones.

    `H = V D V^T` with a unit upper triangular `V`, so that the error `e H e^T` is the sum over k of
    `D_k (e_k + sum over j < k of e_j V_jk)^2`: the best that column k can do, given the errors before, is to round
    `w_k + sum e_j V_jk`. This equals the updates by the inverse of `H` in Frantar et al., "GPTQ", 2022 (Chee et al.,
    "QuIP", 2023, prove it), without an inverse.

    Args:
        matrix: the moment, columns in the order of rounding.
        damping: added to its diagonal, in units of the mean energy; ten times more is tried where that does not do.

    Returns:
        `V`, rounded to float32 precision so that it does not depend on how many threads computed it; the unit matrix,
        which makes up for nothing, where the moment cannot be factored.
    """
    size = len(matrix)
    for _ in range(_TRIES):
        # The last column is factored first.
        flipped = matrix[::-1, ::-1].copy()
        flipped.flat[:: size + 1] += damping
        # A feature that never was anything but zero is left alone.
        dead = np.flatnonzero(flipped.diagonal() <= 0)
        flipped[dead, dead] = 1
        try:
            root = np.linalg.cholesky(flipped)
        except np.linalg.LinAlgError:
            damping = _MORE * max(damping, 1e-4)
            continue
        with np.errstate(over="ignore"):
            root /= root.diagonal().copy()[None, :]
            upper = root[::-1, ::-1].astype(np.float32)
        if np.isfinite(upper).all():
            return np.ascontiguousarray(upper, np.float64)
        damping = _MORE * max(damping, 1e-4)
    return np.eye(size)
