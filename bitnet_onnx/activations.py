"""Per-token integer activations and the sums whose order is part of the operator's contract."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import FloatArray

LANES: Final = 16
ACTIVATION_BITS: Final = (0, 8, 16)
#: What the largest value of a token becomes, by bits. With 16, both digits of base 256 fit a signed byte.
PEAKS: Final = {8: 127, 16: 32512}
_FLOOR: Final = np.float32(1e-5)


def lanes16(values: FloatArray) -> FloatArray:
    """Sum the last axis in the fixed order of the contract: 16 interleaved lanes, then halves.

    Args:
        values: float32 `[..., K]`.

    Returns:
        float32 `[...]`; the same bits as every kernel's sum.
    """
    *lead, columns = values.shape
    steps = -(-columns // LANES)
    whole = np.zeros((*lead, steps * LANES), np.float32)
    whole[..., :columns] = values
    whole = whole.reshape(*lead, steps, LANES)
    lanes = whole[..., 0, :].copy()
    for step in range(1, steps):
        lanes += whole[..., step, :]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


def rms_norm(x: FloatArray, weight: FloatArray, epsilon: float) -> FloatArray:
    """Root-mean-square normalization, `x / sqrt(mean(x^2) + epsilon) * weight`, in the contract's order.

    Formula: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

    Args:
        x: float32 `[..., K]`.
        weight: float32 `[K]`.
        epsilon: added to the mean square.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean = lanes16(x * x) / np.float32(x.shape[-1])
        inverse = np.float32(1) / np.sqrt(mean + np.float32(epsilon))
        normalized: FloatArray = (x * inverse[..., None]) * weight
    return normalized


def check_activation_bits(bits: int) -> None:
    """Refuse any other number than those of the operator.

    Raises:
        InputError: `bits` is not 0, 8 or 16.
    """
    if bits not in ACTIVATION_BITS:
        raise InputError(f"activation_bits is {bits}: it must be 0, 8 or 16")


def quantize_activations(x: FloatArray, bits: int = 8) -> tuple[npt.NDArray[np.int16], FloatArray]:
    """Quantize every token (last axis) to integers with its own scale.

    `s = peak / max(max|x|, 1e-5)`, `q = rint(x * s)`, half to even; `peak` is 127, or 32512 with 16 bits.

    Args:
        x: float32 `[..., K]`.
        bits: 8 or 16.

    Returns:
        `q`, int16 `[..., K]`, and `s`, float32 `[...]`. A token with a non-finite value has `s = NaN` and `q = 0`.
    """
    finite = np.asarray(np.isfinite(x).all(axis=-1))
    clean = np.where(finite[..., None], x, np.float32(0))
    peak = np.maximum(np.abs(clean).max(axis=-1, initial=0), _FLOOR)
    scale = np.float32(PEAKS[bits]) / peak
    # Two roundings cannot carry the largest value to the next integer: nothing needs to be clamped.
    quantized = np.rint(clean * scale[..., None]).astype(np.int16)
    return quantized, np.where(finite, scale, np.float32(np.nan))
