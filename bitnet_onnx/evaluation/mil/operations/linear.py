"""Products of matrices."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from bitnet_onnx.evaluation.mil._call import Call, is_float, operation
from bitnet_onnx.evaluation.mil._stored import steps
from bitnet_onnx.evaluation.mil._types import MAX_RANK, Array

#: The equations that Core ML has, with letters in order of their first use.
_EQUATIONS: Final = {"abcd,adce->abce": 4, "abc,cbd->abd": 3}


@operation("linear", operands=("x", "weight", "bias"))
def linear(call: Call) -> Array:
    """`x @ weight.T + bias`, some rows of the weight at a time; sums are float32."""
    x, weight = call.array("x"), call.stored("weight")
    if len(weight.shape) != 2 or not x.ndim or x.shape[-1] != weight.shape[1]:
        raise call.fail(f"x is {list(x.shape)}, weight {list(weight.shape)}")
    rows, columns = weight.shape
    call.reserve((*x.shape[:-1], rows))
    tokens = x.reshape(-1, columns)
    result = np.empty((len(tokens), rows), x.dtype)
    parts = steps(weight.shape)
    for start in parts:
        stop = min(start + parts.step, rows)
        part = weight.rows(start, stop)
        if part.dtype != x.dtype:
            raise call.fail(f"x is {call.element('x')}, weight {weight.element}")
        result[:, start:stop] = tokens @ part.T
    bias = call.optional("bias")
    if bias is not None:
        if bias.shape != (rows,):
            raise call.fail(f"bias is {list(bias.shape)}, expected {[rows]}")
        result += bias
    return result.reshape(*x.shape[:-1], rows)


@operation("matmul", operands=("x", "y"))
def matmul(call: Call) -> Array:
    """Products of the last two dimensions, broadcasting over those before."""
    x, y = call.array("x"), call.array("y")
    if not x.ndim or not y.ndim:
        raise call.fail("a scalar is no matrix")
    x = np.swapaxes(x, -1, -2) if call.boolean("transpose_x") and x.ndim > 1 else x
    y = np.swapaxes(y, -1, -2) if call.boolean("transpose_y") and y.ndim > 1 else y
    inner = y.shape[-2] if y.ndim > 1 else y.shape[0]
    if x.shape[-1] != inner:
        raise call.fail(f"x is {list(x.shape)}, y {list(y.shape)}, transposed as they are")
    call.reserve(product_shape(call, x, y))
    return np.asarray(x @ y)


def product_shape(call: Call, x: Array, y: Array) -> tuple[int, ...]:
    """The shape of `x @ y`, of two dimensions or more."""
    try:
        batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except ValueError:
        raise call.fail(f"x is {list(x.shape)}, y {list(y.shape)}: they do not go together") from None
    return (*batch, x.shape[-2] if x.ndim > 1 else 1, y.shape[-1] if y.ndim > 1 else 1)


@operation("einsum", operands=("values",))
def einsum(call: Call) -> Array:
    """Products over the last dimension of the first and the third last of the second."""
    values, equation = call.arrays("values"), call.text("equation")
    letters = dict(zip(dict.fromkeys(c for c in equation if c.isalpha()), "abcdefgh", strict=False))
    rank = _EQUATIONS.get("".join(letters.get(character, character) for character in equation.replace(" ", "")))
    if rank is None or len(values) != 2 or any(value.ndim != rank for value in values):
        raise call.fail(f"the equation {equation!r:.60} for {len(values)} values is not supported")
    x, y = values
    # The batch dimensions go to the front: [.., H, C, W1] @ [.., H, W1, W2].
    left, right = np.swapaxes(x, -3, -2), np.swapaxes(y, -3, -2)
    if left.shape[-1] != right.shape[-2]:
        raise call.fail(f"values are {list(x.shape)} and {list(y.shape)}")
    call.reserve(product_shape(call, left, right))
    return np.swapaxes(left @ right, -3, -2)


@operation("conv", operands=("x", "weight", "bias"))
def conv(call: Call) -> Array:
    """Sums over a window that slides along one, two or three dimensions, in groups of channels."""
    x, weight = call.array("x"), call.array("weight")
    spatial = x.ndim - 2
    if not 1 <= spatial <= 3 or weight.ndim != x.ndim or not is_float(x):
        raise call.fail(f"x is {list(x.shape)}, weight {list(weight.shape)}")
    groups = call.integer("groups", 1)
    kernel = weight.shape[2:]
    if groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise call.fail(f"x is {list(x.shape)}, weight {list(weight.shape)} in {groups} groups")
    strides = call.integers("strides", (1,) * spatial)
    dilations = call.integers("dilations", (1,) * spatial)
    if len(strides) != spatial or len(dilations) != spatial or min(*strides, *dilations) < 1:
        raise call.fail(f"strides {list(strides)} and dilations {list(dilations)} for {spatial} dimensions")
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = _pads(call, x.shape[2:], spans, strides)
    padded = [size + before + after for size, (before, after) in zip(x.shape[2:], pads, strict=True)]
    if any(size < span for size, span in zip(padded, spans, strict=True)):
        raise call.fail(f"a window of {spans} over {padded}")
    call.reserve((*x.shape[:2], *padded))
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    sizes = [(size - span) // step + 1 for size, span, step in zip(padded, spans, strides, strict=True)]
    count = math.prod(kernel) * x.shape[1]
    call.reserve((x.shape[0], *sizes, count), 2)
    if 2 * spatial + 2 > MAX_RANK:
        raise call.fail(f"{spatial} dimensions are not supported")
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, tuple(range(2, 2 + spatial)))
    chosen = (slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))
    windows = windows[chosen]
    # [batch, groups, channels, *sizes, *kernel] -> [groups, batch * sizes, channels * kernel]
    batch, channels = x.shape[0], weight.shape[1]
    parts = windows.reshape(batch, groups, channels, *sizes, *kernel)
    order = (1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial))
    left = parts.transpose(order).reshape(groups, -1, channels * math.prod(kernel))
    right = weight.reshape(groups, weight.shape[0] // groups, -1)
    result = (left @ right.transpose(0, 2, 1)).reshape(groups, batch, *sizes, -1)
    result = np.moveaxis(result, -1, 1).transpose(2, 0, 1, *range(3, 3 + spatial))
    result = result.reshape(batch, weight.shape[0], *sizes)
    bias = call.optional("bias")
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            raise call.fail(f"bias is {list(bias.shape)}, expected {[weight.shape[0]]}")
        result = result + bias.reshape(-1, *(1,) * spatial)
    return result


def _pads(call: Call, sizes: tuple[int, ...], spans: list[int], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    kind = call.text("pad_type", "valid")
    if kind == "custom":
        pads = call.integers("pad", (0,) * (2 * len(spans)))
        if len(pads) != 2 * len(spans) or min(pads) < 0:
            raise call.fail(f"pad is {list(pads)!s:.80}")
        return list(zip(pads[0::2], pads[1::2], strict=True))
    if kind == "valid":
        return [(0, 0)] * len(spans)
    if kind not in {"same", "same_lower"}:
        raise call.fail(f"pad_type is {kind!r:.40}")
    pairs = []
    for size, span, step in zip(sizes, spans, strides, strict=True):
        total = max(0, (-(-size // step) - 1) * step + span - size)
        low, high = total // 2, total - total // 2
        pairs.append((low, high) if kind == "same" else (high, low))
    return pairs
