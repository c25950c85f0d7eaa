"""Rotation of attention heads: values that stand out are spread over the head.

Attention adds up values with weights of its own, so that turning every value by `R`, in the rows of the value
projection, is undone by `R^T` in the columns of the output projection (Ashkboos et al., "QuaRot", 2024).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import FloatArray


def head_rotation(size: int, seed: int | None = None) -> FloatArray:
    """An orthogonal matrix that spreads one large coordinate evenly.

    It is the Hadamard matrix for powers of two, and else its Kronecker product with a cosine transform of the odd part.

    Args:
        size: of a head.
        seed: turns signs of coordinates at random first; the same on all machines.

    Returns:
        float32 `[size, size]`.

    Raises:
        InputError: the size is not positive.
    """
    if size < 1:
        raise InputError(f"head size is {size}: it must be positive")
    odd = size
    while odd % 2 == 0:
        odd //= 2
    # The orthonormal cosine transform of type II; for one coordinate it is 1.
    angles = np.outer(np.arange(odd), np.arange(odd) + 0.5) * (math.pi / odd)
    matrix = np.cos(angles) * math.sqrt(2 / odd)
    matrix[0] = math.sqrt(1 / odd)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) * math.sqrt(0.5)
    if seed is not None:
        # The raw stream of the generator is what numpy promises to keep.
        bits = np.random.PCG64(seed).random_raw(size) & np.uint64(1)
        matrix = matrix * np.where(bits, -1.0, 1.0)
    return matrix.astype(np.float32)


def rotate_outputs(weight: FloatArray, rotation: FloatArray) -> FloatArray:
    """Turn what a layer gives, head by head.

    Args:
        weight: `[heads * d, K]`, or its bias `[heads * d]`.
        rotation: `[d, d]`.
    """
    heads = _heads(weight.shape[0], rotation)
    turned = _wide(rotation) @ weight.reshape(heads, len(rotation), -1)
    return turned.reshape(weight.shape).astype(np.float32)


def rotate_inputs(weight: FloatArray, rotation: FloatArray) -> FloatArray:
    """Make a layer expect inputs that were turned, head by head.

    Args:
        weight: `[N, heads * d]`.
        rotation: `[d, d]`.
    """
    heads = _heads(weight.shape[1], rotation)
    turned = weight.reshape(len(weight), heads, len(rotation)) @ _wide(rotation).T
    return turned.reshape(weight.shape).astype(np.float32)


def _wide(rotation: FloatArray) -> npt.NDArray[np.float64]:
    return rotation.astype(np.float64)


def _heads(features: int, rotation: FloatArray) -> int:
    if features % len(rotation):
        raise InputError(f"{features} features are no whole heads of {len(rotation)}")
    return features // len(rotation)
