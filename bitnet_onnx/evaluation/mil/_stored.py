"""Weights that stay as they are stored until some of their rows are needed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import numpy as np

from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation.mil._blob import BlobTensor, unpack
from bitnet_onnx.evaluation.mil._types import Array, Element, Kind

#: Elements made dense at once.
CHUNK: Final = 1 << 22


class Stored(Protocol):
    """A tensor of at least one dimension that gives its rows."""

    @property
    def element(self) -> Element:
        """Type of the dense elements."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense tensor."""
        ...

    def rows(self, start: int, stop: int, /) -> Array:
        """Dense rows in the type that is computed with."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """An array as a stored tensor."""

    values: Array
    element: Element

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.values.shape

    def rows(self, start: int, stop: int) -> Array:
        """A view."""
        return self.values[start:stop]

    def flat(self, start: int, count: int) -> Array:
        """A view of elements in the order in which they lie."""
        return self.values.reshape(-1)[start : start + count]


#: What gives elements in the order in which they lie.
Flat: TypeAlias = BlobTensor | Dense


def steps(shape: tuple[int, ...], most: int = CHUNK) -> range:
    """Where parts of rows begin that have at most about `most` elements each."""
    return range(0, shape[0], max(1, most // max(1, math.prod(shape[1:]))))


def dense(stored: Stored) -> Array:
    """The whole tensor; the caller has checked that it fits."""
    if isinstance(stored, Dense):
        return stored.values
    result = np.empty(stored.shape, stored.element.computed)
    parts = steps(stored.shape)
    for start in parts:
        stop = min(start + parts.step, stored.shape[0])
        result[start:stop] = stored.rows(start, stop)
    return result


@dataclass(frozen=True, slots=True)
class Palette:
    """Tables of values that indices choose from.

    Attributes:
        values: `[*groups, entries]`: a table for each block of the dense tensor.
        element: of the values.
        shape: of the dense tensor; the number of groups divides it in each dimension.
    """

    values: Array
    element: Element
    shape: tuple[int, ...]

    def choose(self, indices: Array, start: int) -> Array:
        """What integer indices of the rows from `start` on stand for."""
        *groups, entries = self.values.shape
        if all(size == 1 for size in groups):
            return np.take(self.values.reshape(entries), indices)
        # One index for each dimension, with a size of 1 in all others.
        place: list[Array] = []
        for axis, (size, count) in enumerate(zip(self.shape, groups, strict=True)):
            along = np.arange(indices.shape[axis]) + (start if axis == 0 else 0)
            each = [1] * len(self.shape)
            each[axis] = -1
            place.append((along // (size // count)).reshape(each))
        table = np.ravel_multi_index(tuple(place), tuple(groups)) * entries
        found: Array = np.take(self.values.reshape(-1), table + indices)
        return found


@dataclass(frozen=True, slots=True)
class Palettized:
    """`constexpr_lut_to_dense`: indices into tables."""

    indices: Stored
    palette: Palette

    @property
    def element(self) -> Element:
        """That of the tables."""
        return self.palette.element

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the indices."""
        return self.indices.shape

    def rows(self, start: int, stop: int) -> Array:
        """Looked up."""
        indices, values = self.indices, self.palette.values
        if isinstance(indices, BlobTensor) and values.size == values.shape[-1] and indices.rows_are_bytes:
            # Whole bytes at once: each stands for several values.
            several = unpack(np.arange(256, dtype=np.uint8), indices.element, 256 * 8 // indices.element.bits)
            table = np.take(values.reshape(-1), several).reshape(256, -1)
            return np.take(table, indices.packed(start, stop), axis=0).reshape(stop - start, *self.shape[1:])
        return self.palette.choose(indices.rows(start, stop), start)


@dataclass(frozen=True, slots=True)
class Scaled:
    """`constexpr_blockwise_shift_scale`: `scale * (data - offset)` with a scale for each block.

    Attributes:
        data: what is stored.
        scale: of as many dimensions, each of which divides that of the data.
        offset: as the scale, or None for zero.
        element: of the scale.
    """

    data: Stored
    scale: Array
    offset: Array | None
    element: Element

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the data."""
        return self.data.shape

    def rows(self, start: int, stop: int) -> Array:
        """Scaled, in single precision."""
        values = self.data.rows(start, stop).astype(np.float32)
        return scaled(values, self.scale, self.offset, self.shape, start)


def scaled(values: Array, scale: Array, offset: Array | None, shape: tuple[int, ...], start: int) -> Array:
    """`scale * (values - offset)` on the rows of a tensor of `shape` from `start` on; changes its argument."""
    count = len(values)
    if values.ndim == 2 and offset is None and scale.shape[1] < shape[1]:
        # As spreading, without an array of scales that is as large as the values.
        steps = spread(scale, (shape[0], scale.shape[1]), start, count)
        blocks = values.reshape(count, scale.shape[1], -1)
        blocks *= steps[:, :, None]
        return values
    if offset is not None:
        values -= spread(offset, shape, start, count)
    values *= spread(scale, shape, start, count)
    return values


def spread(blocks: Array, shape: tuple[int, ...], start: int, count: int) -> Array:
    """One number for each block, repeated over the elements of `count` rows from `start` on."""
    first = shape[0] // blocks.shape[0]
    parts = np.take(blocks, np.arange(start, start + count) // first, axis=0) if first < shape[0] else blocks
    for axis in range(1, len(shape)):
        each = shape[axis] // parts.shape[axis]
        if 1 < each < shape[axis]:
            parts = np.repeat(parts, each, axis=axis)
    return parts


@dataclass(frozen=True, slots=True)
class Nonzeros:
    """The elements of a sparse tensor that are stored, the second output of `constexpr_lut_to_sparse`.

    Attributes:
        mask: uint1; ones where there is an element.
        data: those, in order.
        palette: tables that the data are indices into, or None.
        scale: and `offset` of the data, or None; see `Scaled`.
        offset: as the scale, or None.
        element: of what is given.
    """

    mask: Stored
    data: Flat
    palette: Palette | None = None
    scale: Array | None = None
    offset: Array | None = None
    element: Element = Element.FLOAT16

    @property
    def shape(self) -> tuple[int, ...]:
        """As many as there are."""
        return self.data.shape

    def rows(self, start: int, stop: int) -> Array:
        """Values by themselves; for the whole tensor, since their place decides which table they use."""
        whole = Sparse(self.mask, self)
        found = np.concatenate([np.zeros(0, self.element.computed), *whole.nonzeros()])
        return found[start:stop]


@dataclass(frozen=True, slots=True)
class Sparse:
    """`constexpr_sparse_to_dense`: zeros but for the elements that a mask names."""

    mask: Stored
    data: Nonzeros
    _before: list[Array] = field(default_factory=list, repr=False, compare=False)

    @property
    def element(self) -> Element:
        """That of the elements."""
        return self.data.element

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the mask."""
        return self.mask.shape

    def rows(self, start: int, stop: int) -> Array:
        """Filled in."""
        values, mask = self._filled(start, stop)
        values[~mask] = 0
        return values

    def nonzeros(self) -> list[Array]:
        """The stored elements as values, in order, a part of the rows at a time."""
        parts = steps(self.shape)
        filled = [self._filled(start, min(start + parts.step, self.shape[0])) for start in parts]
        return [values[mask] for values, mask in filled]

    def codes(self, start: int, stop: int) -> tuple[Array, Array]:
        """The stored integers of some rows, zero where there are none, and the mask."""
        before = self._counts()
        mask = self.mask.rows(start, stop) != 0
        first, last = int(before[start]), int(before[stop])
        data = self.data.data.flat(first, last - first)
        codes = np.zeros(mask.shape, data.dtype)
        codes[mask] = data
        return codes, mask

    def _filled(self, start: int, stop: int) -> tuple[Array, Array]:
        codes, mask = self.codes(start, stop)
        data = self.data
        if data.palette is not None:
            return data.palette.choose(codes, start), mask
        if data.scale is None:
            return codes, mask
        return scaled(codes.astype(np.float32), data.scale, data.offset, self.shape, start), mask

    def _counts(self) -> Array:
        """How many elements lie before each row, and in all."""
        if not self._before:
            counts = np.zeros(self.shape[0] + 1, np.int64)
            parts = steps(self.shape)
            for start in parts:
                stop = min(start + parts.step, self.shape[0])
                mask = self.mask.rows(start, stop).reshape(stop - start, -1)
                counts[start + 1 : stop + 1] = np.count_nonzero(mask, axis=1)
            counts = np.cumsum(counts)
            if counts[-1] != self.data.shape[0]:
                raise PackageError(f"a mask names {counts[-1]} elements, {self.data.shape[0]} are stored")
            self._before.append(counts)
        return self._before[0]


@dataclass(frozen=True, slots=True)
class Reshaped:
    """Rows of a tensor whose elements are given in order: the packed forms of iOS 16.

    Attributes:
        whole: `[elements]`.
        shape: what they are laid out as.
    """

    whole: Stored
    shape: tuple[int, ...]

    @property
    def element(self) -> Element:
        """That of the whole."""
        return self.whole.element

    def rows(self, start: int, stop: int) -> Array:
        """Laid out."""
        width = math.prod(self.shape[1:])
        return self.whole.rows(start * width, stop * width).reshape(stop - start, *self.shape[1:])


@dataclass(frozen=True, slots=True)
class Widened:
    """`constexpr_cast`: the same numbers in single precision."""

    stored: Stored

    @property
    def element(self) -> Element:
        """Single precision."""
        return Element.FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the numbers."""
        return self.stored.shape

    def rows(self, start: int, stop: int) -> Array:
        """As they are: all floats are computed with in single precision."""
        return self.stored.rows(start, stop)


class Rounded:
    """Weights as hardware that computes in half precision sees them.

    Args:
        stored: dense in float16.
    """

    def __init__(self, stored: Stored) -> None:
        self.stored = stored

    @property
    def element(self) -> Element:
        """That of the weights."""
        return self.stored.element

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weights."""
        return self.stored.shape

    def rows(self, start: int, stop: int) -> Array:
        """Rounded."""
        rows = self.stored.rows(start, stop)
        if self.element.kind is not Kind.FLOAT:
            return rows
        with np.errstate(over="ignore"):
            return rows.astype(np.float16).astype(np.float32)
