"""Operations that move elements and leave them as they are."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from bitnet_onnx.evaluation.mil._call import Call, Result, operation
from bitnet_onnx.evaluation.mil._types import MAX_RANK, Array

#: From here on zeros in a shape are counted from the last dimension.
_ZEROS_FROM_THE_RIGHT: Final = 17


@operation("reshape", moves=True)
def reshape(call: Call) -> Array:
    """Another shape: `0` takes over a dimension, `-1` is what is left."""
    x = call.array("x")
    return x.reshape(target_shape(call, x.shape, call.integers("shape")))


def target_shape(call: Call, source: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a reshape gives."""
    sizes = list(shape)
    if len(sizes) > MAX_RANK or any(size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise call.fail(f"shape is {sizes!s:.80}")
    if 0 in sizes:
        if call.opset < _ZEROS_FROM_THE_RIGHT and len(sizes) != len(source):
            raise call.fail(f"shape {sizes} has zeros, but not the {len(source)} dimensions of x")
        for index, size in enumerate(sizes):
            place = index - len(sizes) + len(source)
            if size == 0:
                sizes[index] = source[place] if place >= 0 else 1
    count = math.prod(source)
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if not known or count % known:
            raise call.fail(f"{list(source)} cannot be laid out as {list(shape)}")
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        raise call.fail(f"{list(source)} cannot be laid out as {list(shape)}")
    return tuple(sizes)


@operation("reshape_like", moves=True)
def reshape_like(call: Call) -> Array:
    """A shape put together from those of other tensors."""
    x = call.array("x")
    begins, ends, masks = (call.arrays(name) for name in ("begins", "ends", "end_masks"))
    shape: list[int] = []
    for index, reference in enumerate(call.arrays("ref_tensors")):
        if index >= min(len(begins), len(ends), len(masks)):
            raise call.fail("begins, ends and end_masks must be as many as ref_tensors")
        end = reference.ndim if masks[index] else int(ends[index])
        shape += reference.shape[int(begins[index]) : end]
    return x.reshape(target_shape(call, x.shape, tuple(shape)))


@operation("transpose", moves=True)
def transpose(call: Call) -> Array:
    """Axes in another order."""
    x, order = call.array("x"), call.integers("perm")
    axes = tuple(call.axis(axis, x.ndim) for axis in order)
    if sorted(axes) != list(range(x.ndim)):
        raise call.fail(f"perm is {list(order)} for {x.ndim} dimensions")
    return x.transpose(axes)


@operation("expand_dims", moves=True)
def expand_dims(call: Call) -> Array:
    """New dimensions of size 1 at `axes` of the result."""
    x, axes = call.array("x"), call.integers("axes")
    rank = x.ndim + len(axes)
    if rank > MAX_RANK:
        raise call.fail(f"{rank} dimensions, the limit is {MAX_RANK}")
    return np.expand_dims(x, call.axes(axes, rank))


@operation("squeeze", moves=True)
def squeeze(call: Call) -> Array:
    """Without the dimensions of size 1, or some of them."""
    x = call.array("x")
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    axes = call.axes(call.integers("axes", ones), x.ndim)
    if any(x.shape[axis] != 1 for axis in axes):
        raise call.fail(f"axes {list(axes)} of {list(x.shape)} are not all of size 1")
    return np.squeeze(x, axes)


@operation("flatten2d", moves=True)
def flatten2d(call: Call) -> Array:
    """Two dimensions: those before `axis` and those from it on."""
    x, axis = call.array("x"), call.integer("axis", 1)
    if not -x.ndim <= axis <= x.ndim:
        raise call.fail(f"the axis {axis} is not one of {x.ndim}")
    cut = axis if axis >= 0 else axis + x.ndim
    return x.reshape(math.prod(x.shape[:cut]), math.prod(x.shape[cut:]))


@operation("concat", operands=("values",), moves=True)
def concat(call: Call) -> Array:
    """One behind the other, or alternating, along an axis."""
    values = call.arrays("values")
    if any(value.ndim != values[0].ndim for value in values) or not values[0].ndim:
        raise call.fail(f"values of {sorted({value.ndim for value in values})} dimensions")
    axis = call.axis(call.integer("axis"), values[0].ndim)
    rests = {value.shape[:axis] + value.shape[axis + 1 :] for value in values}
    alternating = call.boolean("interleave")
    if len(rests) > 1 or (alternating and len({value.shape for value in values}) > 1):
        raise call.fail(f"values of different shapes: {[list(value.shape) for value in values]!s:.200}")
    call.reserve((sum(value.size for value in values),))
    if alternating:
        stacked = np.stack(values, axis + 1)
        shape = list(values[0].shape)
        shape[axis] *= len(values)
        return stacked.reshape(shape)
    return np.concatenate(values, axis)


@operation("stack", operands=("values",), moves=True)
def stack(call: Call) -> Array:
    """Along a new axis."""
    values = call.arrays("values")
    if len({value.shape for value in values}) > 1 or values[0].ndim >= MAX_RANK:
        raise call.fail(f"values of the shapes {[list(value.shape) for value in values]!s:.200}")
    call.reserve((sum(value.size for value in values),))
    return np.stack(values, call.axis(call.integer("axis"), values[0].ndim + 1))


@operation("split", moves=True)
def split(call: Call) -> tuple[Array, ...]:
    """Parts along an axis, of given sizes or equal ones."""
    x = call.array("x")
    axis = call.axis(call.integer("axis"), x.ndim)
    if call.has("split_sizes"):
        sizes = call.integers("split_sizes")
    else:
        count = call.integer("num_splits")
        if count < 1 or x.shape[axis] % count or count > len(call.operation.outputs):
            raise call.fail(f"{x.shape[axis]} elements in {count} parts for {len(call.operation.outputs)} outputs")
        sizes = (x.shape[axis] // count,) * count
    if sum(sizes) != x.shape[axis] or any(size < 0 for size in sizes):
        raise call.fail(f"parts of {list(sizes)!s:.80} of {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


@operation("reverse", moves=True)
def reverse(call: Call) -> Array:
    """Turned round along axes, or along all."""
    x = call.array("x")
    return np.flip(x, call.axes(call.integers("axes", range(x.ndim)), x.ndim))


@operation("shape", result=Result.DECLARED, moves=True)
def shape(call: Call) -> Array:
    """The sizes of all dimensions; of weights too, without reading them."""
    return np.array(call.value("x").shape, np.int32)


@operation("tile", moves=True)
def tile(call: Call) -> Array:
    """Repeated along each dimension."""
    x, counts = call.array("x"), call.integers("reps")
    if len(counts) != x.ndim or any(count < 1 for count in counts):
        raise call.fail(f"reps is {list(counts)!s:.80} for {x.ndim} dimensions")
    call.reserve([size * count for size, count in zip(x.shape, counts, strict=True)])
    return np.tile(x, counts)


@operation("pad", moves=True)
def pad(call: Call) -> Array:
    """More elements before and behind, in the last dimensions."""
    x, sizes, mode = call.array("x"), call.integers("pad"), call.text("mode", "constant")
    pairs = list(zip(sizes[0::2], sizes[1::2], strict=False))
    if len(sizes) % 2 or len(pairs) > x.ndim or any(size < 0 for size in sizes):
        raise call.fail(f"pad is {list(sizes)!s:.80} for {x.ndim} dimensions")
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    call.reserve([size + before + after for size, (before, after) in zip(x.shape, pairs, strict=True)])
    if mode == "constant":
        return np.pad(x, pairs, constant_values=np.asarray(call.number("constant_val", 0.0), x.dtype))
    limit = {"reflect": 1, "replicate": 0}.get(mode)
    if limit is None:
        raise call.fail(f"mode is {mode!r:.40}")
    for size, both in zip(x.shape, pairs, strict=True):
        if max(both) > size - limit:
            raise call.fail(f"pad is {list(sizes)!s:.80} for {list(x.shape)} with the mode {mode}")
    return np.pad(x, pairs, mode="reflect" if mode == "reflect" else "edge")


@operation("fill", operands=("value",), moves=True)
def fill(call: Call) -> Array:
    """One value everywhere."""
    return _filled(call, call.integers("shape"))


@operation("fill_like", operands=("value",), moves=True)
def fill_like(call: Call) -> Array:
    """One value everywhere, in the shape of another tensor."""
    return _filled(call, call.value("ref_tensor").shape)


def _filled(call: Call, sizes: tuple[int, ...]) -> Array:
    if len(sizes) > MAX_RANK or any(size < 0 for size in sizes):
        raise call.fail(f"shape is {list(sizes)!s:.80}")
    call.reserve(sizes)
    return np.full(sizes, call.array("value").reshape(-1)[0])


@operation("range_1d", operands=("start", "end", "step"), moves=True)
def range_1d(call: Call) -> Array:
    """Numbers from `start` to before `end`."""
    start, end, step = (call.array(name).reshape(-1)[:1] for name in ("start", "end", "step"))
    span = (float(end[0]) - float(start[0])) / float(step[0]) if step[0] else math.inf
    if not math.isfinite(span):
        raise call.fail(f"from {start[0]} to {end[0]} in steps of {step[0]}")
    count = max(0, math.ceil(span))
    call.reserve((count,))
    numbers = start[0].astype(np.float64) + np.arange(count) * float(step[0])
    return np.asarray(numbers, start.dtype)
