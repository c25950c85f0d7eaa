"""Attention as one operation."""

from __future__ import annotations

import math

import numpy as np

from bitnet_onnx.evaluation.mil._call import Call, operation
from bitnet_onnx.evaluation.mil._types import Array
from bitnet_onnx.evaluation.mil.operations.activations import normalized_exponentials


@operation("scaled_dot_product_attention", operands=("query", "key", "value"))
def attention(call: Call) -> Array:
    """`softmax(query @ key.T / sqrt(E) + mask) @ value`; a boolean mask says which keys are seen.

    A row of which nothing is seen gives NaN, as in PyTorch, whose operation this is.
    """
    query, key, value = (call.array(name) for name in ("query", "key", "value"))
    if not query.ndim == key.ndim == value.ndim or query.ndim < 3:
        raise call.fail(f"query, key and value have {query.ndim}, {key.ndim} and {value.ndim} dimensions")
    batches = {array.shape[:-2] for array in (query, key, value)}
    if len(batches) > 1 or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        shapes = ", ".join(str(list(array.shape)) for array in (query, key, value))
        raise call.fail(f"query, key and value are {shapes}")
    shape = (*query.shape[:-1], key.shape[-2])
    # Scores, their exponentials in double precision, and what is given.
    call.reserve(shape, 4)
    scores = query @ np.swapaxes(key, -1, -2) * np.float32(1 / math.sqrt(query.shape[-1]))
    scores = call.inner(scores, "query", "scores")
    mask = call.optional("attn_mask")
    if mask is not None:
        if call.broadcast(mask, scores) != shape:
            raise call.fail(f"attn_mask is {list(mask.shape)} for scores of {list(shape)}")
        scores = np.where(mask, scores, np.float32(-np.inf)) if mask.dtype == np.bool_ else scores + mask
    return np.asarray(normalized_exponentials(scores, scores.ndim - 1) @ value)
