"""Operations that choose elements by their places."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from bitnet_onnx.evaluation.mil._call import Call, Result, operation
from bitnet_onnx.evaluation.mil._stored import Stored
from bitnet_onnx.evaluation.mil._types import CAST_NAMES, MAX_RANK, Array, Element

#: From here on indices below zero are out of bounds.
_POSITIVE: Final = 17
_MAX_BATCHES: Final = 100_000


@operation("slice_by_index", moves=True)
def slice_by_index(call: Call) -> Array:
    """`x[begin:end:stride]` in every dimension; some of them dropped."""
    x = call.array("x")
    return np.asarray(x[places(call, x.shape)])


@operation("slice_update", operands=("x", "update"), moves=True)
def slice_update(call: Call) -> Array:
    """A copy in which a slice, as `slice_by_index` takes it, has other elements."""
    x, update = call.array("x"), call.array("update")
    where = places(call, x.shape)
    if x[where].shape != update.shape:
        raise call.fail(f"update is {list(update.shape)}, the slice of {list(x.shape)} is {list(x[where].shape)}")
    call.reserve(x.shape)
    result = x.copy()
    result[where] = update
    return result


def places(call: Call, shape: tuple[int, ...]) -> tuple[slice | int, ...]:
    """What `begin`, `end`, `stride` and the masks choose."""
    rank = len(shape)
    begins, ends = call.integers("begin"), call.integers("end")
    strides = call.integers("stride", (1,) * rank)
    if not len(begins) == len(ends) == len(strides) == rank or 0 in strides:
        raise call.fail(f"begin {list(begins)}, end {list(ends)}, stride {list(strides)} for {rank} dimensions")
    no_begin, no_end, single = (call.booleans(f"{name}_mask", rank) for name in ("begin", "end", "squeeze"))
    found: list[slice | int] = []
    for axis, size in enumerate(shape):
        begin = None if no_begin[axis] else begins[axis]
        if single[axis]:
            index = begin or 0
            if not -size <= index < size:
                raise call.fail(f"begin is {list(begins)} for {list(shape)}")
            found.append(index)
        else:
            found.append(slice(begin, None if no_end[axis] else ends[axis], strides[axis]))
    return tuple(found)


@operation("slice_by_size", moves=True)
def slice_by_size(call: Call) -> Array:
    """`size` elements from `begin` on in every dimension; -1 takes all that are left."""
    x, begins, sizes = call.array("x"), call.integers("begin"), call.integers("size")
    if not len(begins) == len(sizes) == x.ndim:
        raise call.fail(f"begin {list(begins)} and size {list(sizes)} for {x.ndim} dimensions")
    found = []
    for whole, begin, size in zip(x.shape, begins, sizes, strict=True):
        first = begin + whole if begin < 0 else begin
        last = whole if size == -1 else first + size
        if not 0 <= first <= last <= whole:
            raise call.fail(f"begin {list(begins)} and size {list(sizes)} for {list(x.shape)}")
        found.append(slice(first, last))
    return x[tuple(found)]


@operation("gather", moves=True)
def gather(call: Call) -> Array:
    """Slices along an axis; the first `batch_dims` dimensions have indices of their own."""
    batch = call.integer("batch_dims", 0)
    shape = call.value("x").shape
    axis = call.axis(call.integer("axis", 0), len(shape))
    if batch == 0 and axis == 0:
        stored = call.stored("x")
        indices = _indices(call, shape[0])
        call.reserve((*indices.shape, *shape[1:]))
        return _rows(stored, indices)
    x, indices = call.array("x"), _indices(call, shape[axis])
    if not 0 <= batch <= min(axis, indices.ndim) or x.shape[:batch] != indices.shape[:batch]:
        raise call.fail(f"batch_dims is {batch} for {list(shape)} and {list(indices.shape)} along axis {axis}")
    result_shape = (*shape[:axis], *indices.shape[batch:], *shape[axis + 1 :])
    if len(result_shape) > MAX_RANK:
        raise call.fail(f"{len(result_shape)} dimensions, the limit is {MAX_RANK}")
    call.reserve(result_shape)
    if not batch:
        return np.take(x, indices, axis)
    count = math.prod(shape[:batch])
    if count > _MAX_BATCHES:
        raise call.fail(f"{count} batches, the limit is {_MAX_BATCHES}")
    flat, chosen = x.reshape(count, *shape[batch:]), indices.reshape(count, *indices.shape[batch:])
    parts = [np.take(part, index, axis - batch) for part, index in zip(flat, chosen, strict=True)]
    return np.array(parts, x.dtype).reshape(result_shape)


def _rows(stored: Stored, indices: Array) -> Array:
    """Rows of weights, each of which is read once."""
    unique, inverse = np.unique(indices.reshape(-1), return_inverse=True)
    rows = np.empty((len(unique), *stored.shape[1:]), stored.element.computed)
    for place, row in enumerate(unique):
        rows[place] = stored.rows(int(row), int(row) + 1)[0]
    return rows[inverse].reshape((*indices.shape, *stored.shape[1:]))


def _indices(call: Call, size: int, parameter: str = "indices") -> Array:
    indices = call.array(parameter)
    if indices.dtype.kind not in "iu":
        raise call.fail(f"{parameter} is {call.element(parameter)}, expected integers")
    low = 0 if call.opset >= _POSITIVE else -size
    if indices.size and not (indices.min() >= low and indices.max() < size):
        raise call.fail(f"{parameter} holds {indices.min()} to {indices.max()}, expected {low} to {size - 1}")
    wide = indices.astype(np.int64)
    return np.where(wide < 0, wide + size, wide)


@operation("gather_along_axis", moves=True)
def gather_along_axis(call: Call) -> Array:
    """An element along an axis for each index."""
    x = call.array("x")
    axis = call.axis(call.integer("axis", 0), x.ndim)
    indices = _indices(call, x.shape[axis])
    same = indices.ndim == x.ndim and indices.shape[:axis] == x.shape[:axis]
    if not same or indices.shape[axis + 1 :] != x.shape[axis + 1 :]:
        raise call.fail(f"indices are {list(indices.shape)} for {list(x.shape)} along axis {axis}")
    return np.take_along_axis(x, indices, axis)


@operation("gather_nd", moves=True)
def gather_nd(call: Call) -> Array:
    """Slices by several coordinates, the last dimension of `indices`."""
    x, batch = call.array("x"), call.integer("batch_dims", 0)
    if batch:
        raise call.fail("batch_dims other than 0 are not supported")
    return np.asarray(x[_coordinates(call, x.shape)])


def _coordinates(call: Call, shape: tuple[int, ...]) -> tuple[Array, ...]:
    indices = call.array("indices")
    depth = indices.shape[-1] if indices.ndim else 0
    if indices.dtype.kind not in "iu" or not 1 <= depth <= len(shape):
        raise call.fail(f"indices are {call.element('indices')}{list(indices.shape)} for {list(shape)}")
    limit = np.array(shape[:depth])
    low = np.zeros(depth, np.int64) if call.opset >= _POSITIVE else -limit
    if indices.size and not ((indices >= low) & (indices < limit)).all():
        raise call.fail(f"indices hold {indices.min()} to {indices.max()} for {list(shape)}")
    call.reserve((*indices.shape[:-1], *shape[depth:]))
    return tuple(np.moveaxis(indices.astype(np.int64), -1, 0))


@operation("scatter", "scatter_along_axis", "scatter_nd", operands=("data", "updates"))
def scatter(call: Call) -> Array:
    """A copy in which elements at indices are replaced or combined with others."""
    data, updates, mode = call.array("data"), call.array("updates"), call.text("mode", "add")
    where: tuple[Array | slice, ...]
    if call.operation.type == "scatter_nd":
        where = _coordinates(call, data.shape)
    else:
        axis = call.axis(call.integer("axis", 0), data.ndim)
        indices = _indices(call, data.shape[axis])
        if call.operation.type == "scatter":
            where = (*(slice(None),) * axis, indices)
        elif indices.shape != updates.shape or indices.ndim != data.ndim:
            raise call.fail(f"indices are {list(indices.shape)}, updates {list(updates.shape)}")
        else:
            grid = np.indices(indices.shape, sparse=True)
            where = (*grid[:axis], indices, *grid[axis + 1 :])
    try:
        expected = data[where].shape
    except IndexError:
        raise call.fail(f"updates are {list(updates.shape)} for {list(data.shape)}") from None
    if expected != updates.shape:
        raise call.fail(f"updates are {list(updates.shape)}, expected {list(expected)}")
    result = data.copy()
    index: Any = where
    match mode:
        case "update":
            result[index] = updates
        case "add":
            np.add.at(result, index, updates)
        case "sub":
            np.subtract.at(result, index, updates)
        case "mul":
            np.multiply.at(result, index, updates)
        case "max":
            np.maximum.at(result, index, updates)
        case "min":
            np.minimum.at(result, index, updates)
        case _:
            raise call.fail(f"the mode {mode!r:.40} is not supported")
    return result


@operation("band_part", moves=True)
def band_part(call: Call) -> Array:
    """The last two dimensions with zeros outside of a band around the diagonal."""
    x, lower, upper = call.array("x"), call.integer("lower", -1), call.integer("upper", -1)
    if x.ndim < 2:
        raise call.fail(f"x has {x.ndim} dimensions, expected at least 2")
    below = np.arange(x.shape[-2])[:, None] - np.arange(x.shape[-1])
    kept = ((lower < 0) | (below <= lower)) & ((upper < 0) | (-below <= upper))
    return np.where(kept, x, np.zeros((), x.dtype))


@operation("one_hot", operands=("on_value", "off_value"), result=Result.DECLARED, moves=True)
def one_hot(call: Call) -> Array:
    """A new axis along which one element is on."""
    indices, size = call.array("indices"), call.integer("one_hot_vector_size")
    if size < 0 or indices.ndim >= MAX_RANK:
        raise call.fail(f"one_hot_vector_size is {size} for {indices.ndim} dimensions")
    call.reserve((*indices.shape, size), 2)
    axis = call.axis(call.integer("axis", -1), indices.ndim + 1)
    on = call.array("on_value") if call.has("on_value") else np.array(1, np.int32)
    off = call.array("off_value") if call.has("off_value") else np.zeros_like(on)
    found = np.expand_dims(indices, -1) == np.arange(size)
    return np.asarray(np.where(np.moveaxis(found, -1, axis), on.reshape(-1)[0], off.reshape(-1)[0]))


@operation("topk", result=Result.DECLARED, moves=True)
def topk(call: Call) -> tuple[Array, ...]:
    """The largest or smallest elements along an axis, and where they are."""
    x, count = call.array("x"), call.integer("k", 1)
    axis = call.axis(call.integer("axis", -1), x.ndim)
    count = x.shape[axis] if count == -1 else count
    if not 0 <= count <= x.shape[axis]:
        raise call.fail(f"k is {count} of {x.shape[axis]}")
    call.reserve(x.shape, 3)
    order = _order(call, x, axis)
    indices = np.take(order, np.arange(count), axis)
    target = CAST_NAMES.get(call.text("output_indices_dtype", "int32"), Element.INT32)
    values = np.take_along_axis(x, indices, axis)
    if not call.boolean("return_indices", default=True):
        return (values,)
    return values, indices.astype(target.computed)


@operation("argsort", result=Result.DECLARED, moves=True)
def argsort(call: Call) -> Array:
    """The order of elements along an axis, the largest first unless `ascending`."""
    x = call.array("x")
    call.reserve(x.shape, 3)
    order = _order(call, x, call.axis(call.integer("axis", -1), x.ndim))
    return np.asarray(order, np.int32)


def _order(call: Call, x: Array, axis: int) -> Array:
    wide = x.astype(np.float64)
    return np.asarray(np.argsort(wide if call.boolean("ascending") else -wide, axis=axis, kind="stable"))


@operation("non_zero", result=Result.DECLARED, moves=True)
def non_zero(call: Call) -> Array:
    """Coordinates of the elements that are not zero."""
    return np.argwhere(call.array("x")).astype(np.int32)
