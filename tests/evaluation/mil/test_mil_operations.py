"""Every operation of a saved program against what numpy says of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mil_programs import ct, mb, run, save, tensor

from bitnet_onnx.evaluation.mil.interpreter import Run

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(2, 3, 4)).astype(np.float32) * 2
Y = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
I = RANDOM.integers(-5, 6, (2, 3, 4)).astype(np.int32)  # noqa: E741
P = np.abs(X) + np.float32(0.1)
TABLE = RANDOM.normal(size=(20, 4)).astype(np.float32)
IDS = np.array([[0, 19, 7], [7, 7, 1]], np.int32)
U = X / np.float32(10)
IMAGE = RANDOM.normal(size=(2, 4, 7, 6)).astype(np.float32)
INPUTS = {"x": X, "y": Y, "i": I, "p": P, "ids": IDS, "u": U, "image": IMAGE}

erf = np.vectorize(math.erf)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def one_by_one(function: Callable[..., float], *arrays: np.ndarray) -> np.ndarray:
    """Element by element with the functions of Python, which know nothing of numpy's."""
    flat = [function(*map(float, parts)) for parts in zip(*(array.reshape(-1) for array in arrays), strict=True)]
    return np.array(flat).reshape(arrays[0].shape)


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: int, dilation: int, pad: int, groups: int) -> np.ndarray:
    """Loops over all that there is."""
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    n, _, height, width = x.shape
    out, per, kh, kw = w.shape
    rows, columns = ((size - (k - 1) * dilation - 1) // stride + 1 for size, k in ((height, kh), (width, kw)))
    result = np.zeros((n, out, rows, columns))
    for batch, o, row, column, c, a, z in np.ndindex(n, out, rows, columns, per, kh, kw):
        channel = o // (out // groups) * per + c
        value = x[batch, channel, row * stride + a * dilation, column * stride + z * dilation]
        result[batch, o, row, column] += value * w[o, c, a, z]
    return result + b[:, None, None]


WEIGHT = RANDOM.normal(size=(5, 4)).astype(np.float32)
BIAS = RANDOM.normal(size=5).astype(np.float32)
KERNEL = RANDOM.normal(size=(6, 2, 3, 2)).astype(np.float32)
SIX = RANDOM.normal(size=6).astype(np.float32)
GAMMA, BETA = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
CENTRED = X - X.mean(axis=(1, 2), keepdims=True)
PADDED = np.zeros((2, 5, 4), np.float32)
PADDED[:, 1:4] = X
UPDATED = X.copy()
UPDATED[:, 1:2, 0:4:2] = 7
SCATTERED = TABLE.copy()
np.add.at(SCATTERED, np.array([3, 3, 0]), np.ones((3, 4), np.float32))
NORMED = CENTRED / np.sqrt(np.square(CENTRED).mean(axis=(1, 2), keepdims=True) + 1e-3) * GAMMA + BETA
SCORES = softmax(X @ Y.transpose(0, 2, 1) / 2 + np.where(np.tri(3, dtype=bool), 0, -np.inf), -1)
Built = Callable[..., Any]

#: What builds an operation from the inputs, and what it gives.
CASES: dict[str, tuple[Built, Any]] = {
    "abs": (lambda x, **_: mb.abs(x=x), one_by_one(abs, X)),
    "acos": (lambda u, **_: mb.acos(x=u), one_by_one(math.acos, U)),
    "asin": (lambda u, **_: mb.asin(x=u), one_by_one(math.asin, U)),
    "atan": (lambda x, **_: mb.atan(x=x), one_by_one(math.atan, X)),
    "atanh": (lambda u, **_: mb.atanh(x=u), one_by_one(math.atanh, U)),
    "ceil": (lambda x, **_: mb.ceil(x=x), one_by_one(math.ceil, X)),
    "clip": (lambda x, **_: mb.clip(x=x, alpha=np.float32(-1), beta=np.float32(0.5)), np.clip(X, -1, 0.5)),
    "cos": (lambda x, **_: mb.cos(x=x), one_by_one(math.cos, X)),
    "cosh": (lambda x, **_: mb.cosh(x=x), one_by_one(math.cosh, X)),
    "erf": (lambda x, **_: mb.erf(x=x), erf(X)),
    "exp": (lambda x, **_: mb.exp(x=x), one_by_one(math.exp, X)),
    "exp2": (lambda x, **_: mb.exp2(x=x), one_by_one(lambda v: 2**v, X)),
    "floor": (lambda x, **_: mb.floor(x=x), one_by_one(math.floor, X)),
    "identity": (lambda x, **_: mb.identity(x=x), X),
    "inverse": (lambda p, **_: mb.inverse(x=p), 1 / (P + 1e-4)),
    "inverse epsilon": (lambda p, **_: mb.inverse(x=p, epsilon=np.float32(1)), 1 / (P + 1)),
    "log": (lambda p, **_: mb.log(x=p, epsilon=np.float32(0.5)), one_by_one(lambda v: math.log(v + 0.5), P)),
    "round": (lambda x, **_: mb.round(x=x), one_by_one(round, X)),
    "rsqrt": (lambda p, **_: mb.rsqrt(x=p, epsilon=np.float32(0.25)), 1 / np.sqrt(P + 0.25)),
    "sign": (lambda x, **_: mb.sign(x=x), one_by_one(lambda v: math.copysign(1, v), X)),
    "sin": (lambda x, **_: mb.sin(x=x), one_by_one(math.sin, X)),
    "sinh": (lambda x, **_: mb.sinh(x=x), one_by_one(math.sinh, X)),
    "sqrt": (lambda p, **_: mb.sqrt(x=p), one_by_one(math.sqrt, P)),
    "square": (lambda x, **_: mb.square(x=x), X * X),
    "tan": (lambda u, **_: mb.tan(x=u), one_by_one(math.tan, U)),
    "tanh": (lambda x, **_: mb.tanh(x=x), one_by_one(math.tanh, X)),
    "threshold": (lambda x, **_: mb.threshold(x=x, alpha=np.float32(0.5)), np.maximum(X, 0.5)),
    "cast to int32": (lambda x, **_: mb.cast(x=x, dtype="int32"), one_by_one(math.trunc, X)),
    "cast to bool": (lambda i, **_: mb.cast(x=mb.cast(x=i, dtype="bool"), dtype="int32"), I != 0),
    "add": (lambda x, y, **_: mb.add(x=x, y=y), X + Y),
    "add broadcast": (lambda x, **_: mb.add(x=x, y=np.float32([[1], [2], [3]])), X + np.array([[1], [2], [3]])),
    "sub": (lambda x, y, **_: mb.sub(x=x, y=y), X - Y),
    "mul": (lambda x, y, **_: mb.mul(x=x, y=y), X * Y),
    "real_div": (lambda x, p, **_: mb.real_div(x=x, y=p), X / P),
    "floor_div": (lambda i, **_: mb.floor_div(x=i, y=np.int32(3)), one_by_one(lambda v: v // 3, I)),
    "mod": (lambda i, **_: mb.mod(x=i, y=np.int32(3)), one_by_one(lambda v: v % 3, I)),
    "pow": (lambda p, y, **_: mb.pow(x=p, y=y), one_by_one(pow, P, Y)),
    "maximum": (lambda x, y, **_: mb.maximum(x=x, y=y), one_by_one(max, X, Y)),
    "minimum": (lambda x, y, **_: mb.minimum(x=x, y=y), one_by_one(min, X, Y)),
    "equal": (lambda i, **_: mb.cast(x=mb.equal(x=i, y=np.int32(1)), dtype="int32"), I == 1),
    "not_equal": (lambda i, **_: mb.cast(x=mb.not_equal(x=i, y=np.int32(1)), dtype="int32"), I != 1),
    "less": (lambda x, y, **_: mb.cast(x=mb.less(x=x, y=y), dtype="int32"), X < Y),
    "less_equal": (lambda i, **_: mb.cast(x=mb.less_equal(x=i, y=np.int32(1)), dtype="int32"), I <= 1),
    "greater": (lambda x, y, **_: mb.cast(x=mb.greater(x=x, y=y), dtype="int32"), X > Y),
    "greater_equal": (lambda i, **_: mb.cast(x=mb.greater_equal(x=i, y=np.int32(1)), dtype="int32"), I >= 1),
    "logical": (
        lambda x, y, **_: mb.cast(
            x=mb.logical_xor(
                x=mb.logical_and(x=mb.greater(x=x, y=y), y=mb.greater(x=x, y=np.float32(0))),
                y=mb.logical_not(x=mb.logical_or(x=mb.less(x=x, y=y), y=mb.less(x=y, y=np.float32(0)))),
            ),
            dtype="int32",
        ),
        ((X > Y) & (X > 0)) ^ ~((X < Y) | (Y < 0)),
    ),
    "select": (lambda x, y, **_: mb.select(cond=mb.greater(x=x, y=y), a=x, b=y), np.maximum(X, Y)),
    "relu": (lambda x, **_: mb.relu(x=x), one_by_one(lambda v: max(v, 0), X)),
    "relu6": (lambda x, **_: mb.relu6(x=mb.mul(x=x, y=np.float32(4))), one_by_one(lambda v: min(max(4 * v, 0), 6), X)),
    "sigmoid": (lambda x, **_: mb.sigmoid(x=x), sigmoid(X)),
    "silu": (lambda x, **_: mb.silu(x=x), X * sigmoid(X)),
    "softplus": (lambda x, **_: mb.softplus(x=x), one_by_one(lambda v: math.log1p(math.exp(v)), X)),
    "softsign": (lambda x, **_: mb.softsign(x=x), X / (1 + np.abs(X))),
    "gelu": (lambda x, **_: mb.gelu(x=x), X * 0.5 * (1 + erf(X / math.sqrt(2)))),
    "gelu tanh": (
        lambda x, **_: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    ),
    "gelu sigmoid": (lambda x, **_: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), X * sigmoid(1.702 * X)),
    "leaky_relu": (lambda x, **_: mb.leaky_relu(x=x, alpha=np.float32(0.2)), np.where(X > 0, X, 0.2 * X)),
    "elu": (lambda x, **_: mb.elu(x=x, alpha=np.float32(0.7)), np.where(X > 0, X, 0.7 * (np.exp(X) - 1))),
    "linear_activation": (
        lambda x, **_: mb.linear_activation(x=x, alpha=np.float32(2), beta=np.float32(1)),
        2 * X + 1,
    ),
    "clamped_relu": (
        lambda x, **_: mb.clamped_relu(x=x, alpha=np.float32(0.5), beta=np.float32(1)),
        np.minimum(np.where(X >= 0, X, X / 2), 1),
    ),
    "scaled_tanh": (
        lambda x, **_: mb.scaled_tanh(x=x, alpha=np.float32(2), beta=np.float32(0.5)),
        2 * np.tanh(0.5 * X),
    ),
    "sigmoid_hard": (
        lambda x, **_: mb.sigmoid_hard(x=x, alpha=np.float32(0.2), beta=np.float32(0.5)),
        np.clip(0.2 * X + 0.5, 0, 1),
    ),
    "thresholded_relu": (lambda x, **_: mb.thresholded_relu(x=x, alpha=np.float32(1)), np.where(X >= 1, X, 0)),
    "softmax": (lambda x, **_: mb.softmax(x=x, axis=1), softmax(X, 1)),
    "reduce_sum": (lambda x, **_: mb.reduce_sum(x=x, axes=[0, 2]), X.sum(axis=(0, 2))),
    "reduce_sum of integers": (lambda i, **_: mb.reduce_sum(x=i, axes=[1], keep_dims=True), I.sum(1, keepdims=True)),
    "reduce_mean": (lambda x, **_: mb.reduce_mean(x=x, axes=[-1], keep_dims=True), X.mean(-1, keepdims=True)),
    "reduce_mean of all": (lambda x, **_: mb.reduce_mean(x=x), X.mean()),
    "reduce_max": (lambda x, **_: mb.reduce_max(x=x, axes=[1]), X.max(1)),
    "reduce_min": (lambda i, **_: mb.reduce_min(x=i, axes=[1]), I.min(1)),
    "reduce_prod": (lambda x, **_: mb.reduce_prod(x=x, axes=[1]), X[:, 0] * X[:, 1] * X[:, 2]),
    "reduce_l1_norm": (lambda x, **_: mb.reduce_l1_norm(x=x, axes=[1]), np.abs(X).sum(1)),
    "reduce_l2_norm": (lambda x, **_: mb.reduce_l2_norm(x=x, axes=[1]), np.linalg.norm(X, axis=1)),
    "reduce_log_sum": (lambda p, **_: mb.reduce_log_sum(x=p, axes=[1]), np.log(P.sum(1))),
    "reduce_log_sum_exp": (
        lambda x, **_: mb.reduce_log_sum_exp(x=mb.add(x=x, y=np.float32(500)), axes=[1]),
        np.log(np.exp(X.astype(np.float64)).sum(1)) + 500,
    ),
    "reduce_sum_square": (lambda x, **_: mb.reduce_sum_square(x=x, axes=[1]), (X * X).sum(1)),
    "reduce_argmax": (lambda x, **_: mb.reduce_argmax(x=x, axis=2), X.argmax(2)),
    "reduce_argmin": (lambda x, **_: mb.reduce_argmin(x=x, axis=0, keep_dims=True), X.argmin(0, keepdims=True)),
    "cumsum": (lambda x, **_: mb.cumsum(x=x, axis=1), np.cumsum(X, 1)),
    "cumsum exclusive": (
        lambda x, **_: mb.cumsum(x=x, axis=1, exclusive=True),
        np.stack([0 * X[:, 0], X[:, 0], X[:, 0] + X[:, 1]], 1),
    ),
    "cumsum reverse": (
        lambda x, **_: mb.cumsum(x=x, axis=1, reverse=True),
        np.stack([X.sum(1), X[:, 1] + X[:, 2], X[:, 2]], 1),
    ),
    "reshape": (lambda x, **_: mb.reshape(x=x, shape=[4, -1]), X.reshape(4, 6)),
    "reshape zeros from the right": (lambda x, **_: mb.reshape(x=x, shape=[1, -1, 0, 0]), X.reshape(1, 2, 3, 4)),
    "transpose": (lambda x, **_: mb.transpose(x=x, perm=[2, 0, 1]), np.moveaxis(X, 2, 0)),
    "expand_dims": (lambda x, **_: mb.expand_dims(x=x, axes=[1, -1]), X[:, None, :, :, None]),
    "squeeze": (lambda x, **_: mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 2]), axes=[2]), X[None]),
    "flatten2d": (lambda x, **_: mb.flatten2d(x=x, axis=2), X.reshape(6, 4)),
    "concat": (lambda x, y, **_: mb.concat(values=[x, y], axis=1), np.hstack([X, Y])),
    "concat interleaved": (
        lambda x, y, **_: mb.concat(values=[x, y], axis=1, interleave=True),
        np.stack([X[:, 0], Y[:, 0], X[:, 1], Y[:, 1], X[:, 2], Y[:, 2]], 1),
    ),
    "stack": (lambda x, y, **_: mb.stack(values=[x, y], axis=2), np.stack([X, Y], 2)),
    "split": (lambda x, **_: mb.split(x=x, split_sizes=[1, 3], axis=2)[1], X[:, :, 1:]),
    "split evenly": (lambda x, **_: mb.split(x=x, num_splits=2, axis=2)[0], X[:, :, :2]),
    "reverse": (lambda x, **_: mb.reverse(x=x, axes=[1]), X[:, ::-1]),
    "shape": (lambda x, **_: mb.shape(x=x), [2, 3, 4]),
    "tile": (lambda x, **_: mb.tile(x=x, reps=[1, 2, 1]), np.hstack([X, X])),
    "pad": (lambda x, **_: mb.pad(x=x, pad=[1, 1, 0, 0]), PADDED),
    "pad reflect": (lambda x, **_: mb.pad(x=x, pad=[1, 2], mode="reflect"), X[:, :, [1, 0, 1, 2, 3, 2, 1]]),
    "pad replicate": (lambda x, **_: mb.pad(x=x, pad=[2, 1], mode="replicate"), X[:, :, [0, 0, 0, 1, 2, 3, 3]]),
    "fill": (lambda **_: mb.fill(shape=[2, 3], value=np.float32(7)), np.full((2, 3), 7)),
    "fill_like": (lambda x, **_: mb.fill_like(ref_tensor=x, value=np.int32(7)), np.full((2, 3, 4), 7)),
    "range_1d": (
        lambda x, **_: mb.range_1d(
            start=np.int32(5), end=mb.gather(x=mb.shape(x=x), indices=2, axis=0), step=np.int32(-1)
        ),
        [],
    ),
    "range_1d of floats": (
        lambda **_: mb.range_1d(start=np.float32(1), end=np.float32(2), step=np.float32(0.25)),
        [1, 1.25, 1.5, 1.75],
    ),
    "slice_by_index": (
        lambda x, **_: mb.slice_by_index(
            x=x, begin=[1, -1, 3], end=[0, 3, 0], stride=[1, 1, -2], squeeze_mask=[True, False, False]
        ),
        X[1, 2:3, 3:0:-2],
    ),
    "slice_by_index masked": (
        lambda x, **_: mb.slice_by_index(
            x=x, begin=[1, 1, 1], end=[1, 2, 1], begin_mask=[True, False, False], end_mask=[True, False, True]
        ),
        X[:, 1:2, 1:],
    ),
    "slice_by_size": (lambda x, **_: mb.slice_by_size(x=x, begin=[0, 1, 1], size=[-1, 2, 2]), X[:, 1:3, 1:3]),
    "slice_update": (
        lambda x, **_: mb.slice_update(
            x=x, update=np.full((2, 1, 2), 7, np.float32), begin=[0, 1, 0], end=[2, 2, 4], stride=[1, 1, 2]
        ),
        UPDATED,
    ),
    "gather": (lambda ids, **_: mb.gather(x=TABLE, indices=ids, axis=0), TABLE[IDS]),
    "gather along another axis": (lambda x, **_: mb.gather(x=x, indices=[2, 0, 0], axis=1), X[:, [2, 0, 0]]),
    "gather of a scalar": (lambda x, **_: mb.gather(x=mb.shape(x=x), indices=1, axis=0), 3),
    "gather with batches": (
        lambda x, ids, **_: mb.gather(x=x, indices=mb.mod(x=ids, y=np.int32(4)), axis=2, batch_dims=1),
        np.stack([X[b][:, IDS[b] % 4] for b in range(2)]),
    ),
    "gather_along_axis": (
        lambda x, i, **_: mb.gather_along_axis(x=x, indices=mb.mod(x=i, y=np.int32(4)), axis=2),
        np.array([[[X[a, b, I[a, b, c] % 4] for c in range(4)] for b in range(3)] for a in range(2)]),
    ),
    "gather_nd": (lambda x, **_: mb.gather_nd(x=x, indices=[[0, 2], [1, 1]]), np.stack([X[0, 2], X[1, 1]])),
    "scatter": (
        lambda **_: mb.scatter(data=TABLE, indices=[3, 3, 0], updates=np.ones((3, 4), np.float32), axis=0),
        SCATTERED,
    ),
    "scatter_nd": (
        lambda x, **_: mb.scatter_nd(
            data=x, indices=[[0, 2], [1, 1]], updates=np.zeros((2, 4), np.float32), mode="update"
        ),
        np.array([[X[0, 0], X[0, 1], 0 * X[0, 2]], [X[1, 0], 0 * X[1, 1], X[1, 2]]]),
    ),
    "scatter_along_axis": (
        lambda x, **_: mb.scatter_along_axis(
            data=x, indices=np.full((2, 1, 4), 2, np.int32), updates=np.ones((2, 1, 4), np.float32), axis=1, mode="max"
        ),
        np.stack([X[:, 0], X[:, 1], np.maximum(X[:, 2], 1)], 1),
    ),
    "band_part": (lambda x, **_: mb.band_part(x=x, lower=1, upper=0), np.tril(X) - np.tril(X, -2)),
    "one_hot": (
        lambda ids, **_: mb.one_hot(indices=ids, one_hot_vector_size=20, axis=1, on_value=2, off_value=-1),
        np.moveaxis(np.where(np.eye(20)[IDS] > 0, 2, -1), 2, 1),
    ),
    "topk": (lambda x, **_: mb.topk(x=x, k=2, axis=2)[0], np.sort(X, 2)[..., [3, 2]]),
    "topk ascending": (lambda x, **_: mb.topk(x=x, k=2, axis=1, ascending=True)[1], np.argsort(X, 1)[:, :2]),
    "argsort": (lambda x, **_: mb.argsort(x=x, axis=2, ascending=True), np.argsort(X, 2)),
    "non_zero": (lambda i, **_: mb.non_zero(x=mb.equal(x=i, y=np.int32(0))), np.array(np.nonzero(I == 0)).T),
    "linear": (lambda x, **_: mb.linear(x=x, weight=WEIGHT, bias=BIAS), np.einsum("abk,nk->abn", X, WEIGHT) + BIAS),
    "linear without bias": (lambda x, **_: mb.linear(x=x, weight=WEIGHT), np.einsum("abk,nk->abn", X, WEIGHT)),
    "matmul": (lambda x, y, **_: mb.matmul(x=x, y=y, transpose_y=True), np.einsum("aik,ajk->aij", X, Y)),
    "matmul transposed": (lambda x, y, **_: mb.matmul(x=x, y=y, transpose_x=True), np.einsum("aki,akj->aij", X, Y)),
    "matmul broadcast": (lambda x, **_: mb.matmul(x=x, y=WEIGHT.T.copy()), np.einsum("aik,jk->aij", X, WEIGHT)),
    "einsum": (
        lambda image, **_: mb.einsum(
            values=[image, mb.transpose(x=image, perm=[0, 3, 2, 1])], equation="nchw,nwhu->nchu"
        ),
        np.einsum("nchw,nuhw->nchu", IMAGE, IMAGE),
    ),
    "conv": (
        lambda image, **_: mb.conv(
            x=image,
            weight=KERNEL,
            bias=SIX,
            strides=[2, 2],
            dilations=[1, 1],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            groups=2,
        ),
        conv(IMAGE, KERNEL, SIX, 2, 1, 1, 2),
    ),
    "conv dilated": (
        lambda image, **_: mb.conv(x=image, weight=KERNEL, bias=SIX, dilations=[2, 2], groups=2, pad_type="valid"),
        conv(IMAGE, KERNEL, SIX, 1, 2, 0, 2),
    ),
    "conv of one pixel": (
        lambda image, **_: mb.conv(x=image, weight=WEIGHT[:, :, None, None], bias=BIAS),
        conv(IMAGE, WEIGHT[:, :, None, None], BIAS, 1, 1, 0, 1),
    ),
    "layer_norm": (
        lambda x, **_: mb.layer_norm(x=x, axes=[1, 2], gamma=GAMMA, beta=BETA, epsilon=np.float32(1e-3)),
        NORMED,
    ),
    "l2_norm": (
        lambda x, **_: mb.l2_norm(x=x, epsilon=np.float32(1e-3)),
        X / math.sqrt(float((X.astype(np.float64) ** 2).sum()) + 1e-3),
    ),
    "batch_norm": (
        lambda image, **_: mb.batch_norm(x=image, mean=BIAS[:4], variance=P[0, 0], gamma=SIX[:4], beta=SIX[2:]),
        (IMAGE - BIAS[:4, None, None]) / np.sqrt(P[0, 0][:, None, None] + 1e-5) * SIX[:4, None, None]
        + SIX[2:, None, None],
    ),
    "instance_norm": (
        lambda image, **_: mb.instance_norm(x=image),
        (IMAGE - IMAGE.mean((2, 3), keepdims=True)) / np.sqrt(IMAGE.var((2, 3), keepdims=True) + 1e-5),
    ),
    "attention": (
        lambda x, y, **_: mb.scaled_dot_product_attention(
            query=x, key=y, value=x, attn_mask=np.tri(3, dtype=bool)[None]
        ),
        SCORES @ X,
    ),
    "attention with floats": (
        lambda x, y, **_: mb.scaled_dot_product_attention(
            query=x, key=y, value=x, attn_mask=np.where(np.tri(3, dtype=bool), 0, -1e4).astype(np.float32)[None]
        ),
        SCORES @ X,
    ),
    "quantize": (
        lambda x, **_: mb.cast(
            x=mb.quantize(input=x, scale=np.float32(0.1), zero_point=np.int8(3), output_dtype="int8"), dtype="int32"
        ),
        np.clip(np.round(X / np.float32(0.1)) + 3, -128, 127),
    ),
    "dequantize": (
        lambda x, **_: mb.dequantize(
            input=mb.quantize(input=x, scale=np.float32(0.1), output_dtype="int8"),
            scale=np.float32([0.5, 0.25]),
            zero_point=np.int8([1, 0]),
            axis=0,
        ),
        (np.round(X / np.float32(0.1)) - np.array([1, 0])[:, None, None]) * np.array([0.5, 0.25])[:, None, None],
    ),
}
CASES["range_1d"] = (CASES["range_1d"][0], [5])
INEXACT = 2e-6


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All operations in one program."""

    def body(**inputs: Any) -> Any:
        built = [build(**inputs) for build, _ in CASES.values()]
        return [mb.identity(x=value, name=f"result_{index}") for index, value in enumerate(built)]

    shapes = {name: tensor(*value.shape, dtype=str(value.dtype)) for name, value in INPUTS.items()}

    def positional(x: Any, y: Any, i: Any, p: Any, ids: Any, u: Any, image: Any) -> Any:
        return body(x=x, y=y, i=i, p=p, ids=ids, u=u, image=image)

    path = save(tmp_path_factory.mktemp("operations") / "all.mlpackage", list(shapes.values()), positional)
    return run(path, INPUTS)


@pytest.mark.parametrize("name", CASES)
def test_an_operation(name: str, results: Run) -> None:
    found = results.outputs[f"result_{list(CASES).index(name)}"]
    expected = np.asarray(CASES[name][1])
    assert found.shape == expected.shape
    exact = found.dtype.kind != "f"
    np.testing.assert_allclose(found, expected, rtol=0 if exact else INEXACT, atol=0 if exact else INEXACT)


def test_results_are_finite(results: Run) -> None:
    assert not results.findings


@pytest.mark.parametrize(
    ("opset", "expected"),
    [(ct.target.iOS16, (1, 3, 4, 2)), (ct.target.iOS18, (1, 2, 2, 6))],
)
def test_zeros_in_a_shape_mean_what_the_release_says(opset: Any, expected: tuple[int, ...], tmp_path: Path) -> None:
    """Counted from the first dimension before iOS 17, and from the last from there on."""

    def body(x: Any) -> Any:
        shape = [1, 3, 0, -1] if opset is ct.target.iOS16 else [1, 2, -1, 0]
        return mb.reshape(x=x, shape=shape, name="y")

    x = np.zeros((1, 2, 4, 3) if opset is ct.target.iOS16 else (2, 2, 6), np.float32)
    path = save(tmp_path / "p.mlpackage", [tensor(*x.shape)], body, opset=opset)
    assert run(path, {"x": x}).outputs["y"].shape == expected
