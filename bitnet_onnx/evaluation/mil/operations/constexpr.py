"""Weights that are stored in codes; they stay so until their rows are needed."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from bitnet_onnx.evaluation.mil._blob import BlobTensor, unpack
from bitnet_onnx.evaluation.mil._call import Call, Result, operation
from bitnet_onnx.evaluation.mil._stored import (
    Dense,
    Flat,
    Nonzeros,
    Palette,
    Palettized,
    Reshaped,
    Scaled,
    Sparse,
    Stored,
    Widened,
    dense,
)
from bitnet_onnx.evaluation.mil._types import CAST_NAMES, MAX_ELEMENTS, MAX_RANK, Array, Element, Kind

#: From here on weights have shapes of their own; before, they were bytes and a shape.
_SHAPED: Final = 18
_BITS: Final = {1: Element.UINT1, 2: Element.UINT2, 4: Element.UINT4, 6: Element.UINT6}


@operation("constexpr_lut_to_dense", operands=("lut",))
def lut_to_dense(call: Call) -> Stored:
    """Indices into tables of values."""
    if call.opset < _SHAPED:
        return _packed_indices(call)
    indices = call.stored("indices")
    lut = call.array("lut")
    if lut.ndim and lut.shape[-1] > 1:
        return Dense(_vectors(call, indices, lut), call.element("lut"))
    return Palettized(indices, _palette(call, indices, indices.shape))


def _palette(call: Call, indices: Stored | Flat, shape: tuple[int, ...]) -> Palette:
    lut, element = call.array("lut"), indices.element
    fits = (
        lut.ndim == len(shape) + 2
        and lut.shape[-1] == 1
        and element.kind is Kind.INTEGER
        and not str(element).startswith("int")
        and element.bits <= 8
        and lut.shape[-2] == 1 << element.bits
        and _divides(lut.shape[:-2], shape)
    )
    if not fits:
        raise call.fail(f"lut is {list(lut.shape)} for {element}{list(shape)}")
    return Palette(lut[..., 0], call.element("lut"), shape)


def _divides(groups: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(groups) == len(shape) and all(
        count >= 1 and size % count == 0 for size, count in zip(shape, groups, strict=True)
    )


def _vectors(call: Call, indices: Stored, lut: Array) -> Array:
    """Every index stands for several elements along one axis."""
    axis, length = call.axis(call.integer("vector_axis"), len(indices.shape)), lut.shape[-1]
    shape = [size * length if place == axis else size for place, size in enumerate(indices.shape)]
    call.reserve(shape, 2)
    codes = dense(indices)
    parts = []
    for index in range(length):
        part = Dense(lut[..., index : index + 1], call.element("lut"))
        groups, entries = lut.shape[:-2], lut.shape[-2]
        if not _divides(groups, indices.shape) or entries != 1 << indices.element.bits:
            raise call.fail(f"lut is {list(lut.shape)} for {indices.element}{list(indices.shape)}")
        parts.append(Palette(part.values[..., 0], part.element, indices.shape).choose(codes, 0))
    return np.stack(parts, axis + 1).reshape(shape)


@operation("constexpr_blockwise_shift_scale", operands=("scale",))
def blockwise_shift_scale(call: Call) -> Stored:
    """`scale * (data - offset)`, with one of each for a block."""
    data = call.stored("data")
    return Scaled(data, *_scale(call, data.shape), call.element("scale"))


def _scale(call: Call, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
    scale, offset = call.array("scale"), call.optional("offset")
    if not _divides(scale.shape, shape) or (offset is not None and offset.shape != scale.shape):
        raise call.fail(f"scale is {list(scale.shape)} for data of {list(shape)}, the offset as it")
    return scale, None if offset is None else offset.astype(np.float32)


@operation("constexpr_lut_to_sparse", operands=("lut",), result=Result.DECLARED)
def lut_to_sparse(call: Call) -> tuple[Stored, Stored]:
    """The mask as it is, and the elements that it names looked up in tables."""
    mask, data = _mask(call, "indices_mask"), _flat(call, "indices_nonzero_data")
    return mask, Nonzeros(mask, data, _palette(call, data, mask.shape), element=call.element("lut"))


@operation("constexpr_sparse_blockwise_shift_scale", operands=("scale",), result=Result.DECLARED)
def sparse_shift_scale(call: Call) -> tuple[Stored, Stored]:
    """The mask as it is, and the elements that it names scaled."""
    mask, data = _mask(call, "data_mask"), _flat(call, "nonzero_data")
    scale, offset = _scale(call, mask.shape)
    return mask, Nonzeros(mask, data, None, scale, offset, call.element("scale"))


@operation("constexpr_sparse_to_dense", operands=("nonzero_data",))
def sparse_to_dense(call: Call) -> Stored:
    """Zeros but for the elements that a mask names."""
    if call.opset < _SHAPED:
        return _packed_mask(call)
    mask, data = _mask(call, "mask"), call.value("nonzero_data").data
    if isinstance(data, Nonzeros):
        if data.mask.shape != mask.shape:
            raise call.fail(f"mask is {list(mask.shape)}, that of nonzero_data {list(data.mask.shape)}")
        return Sparse(mask, data)
    return Sparse(mask, Nonzeros(mask, _flat(call, "nonzero_data"), element=call.element("nonzero_data")))


def _mask(call: Call, parameter: str) -> Stored:
    mask = call.stored(parameter)
    if mask.element is not Element.UINT1:
        raise call.fail(f"{parameter} is {mask.element}, expected uint1")
    return mask


def _flat(call: Call, parameter: str) -> Flat:
    data = call.stored(parameter)
    if len(data.shape) != 1 or not isinstance(data, BlobTensor | Dense):
        raise call.fail(f"{parameter} is {data.element}{list(data.shape)}, expected one dimension")
    return data


@operation("constexpr_cast", operands=("source_val",), result=Result.DECLARED)
def constexpr_cast(call: Call) -> Stored:
    """Halves as singles."""
    if CAST_NAMES.get(call.text("output_dtype")) is not Element.FLOAT32:
        raise call.fail(f"output_dtype is {call.text('output_dtype')!r:.40}, expected fp32")
    return Widened(call.stored("source_val"))


@operation("constexpr_affine_dequantize", operands=("scale",))
def affine_dequantize(call: Call) -> Stored:
    """`scale * (data - zero_point)` with one of each, or one for each place along an axis (iOS 16)."""
    data = call.stored("quantized_data")
    scale, zero = call.array("scale"), call.array("zero_point").astype(np.float32)
    both = call.broadcast(scale, zero)
    shape = [1] * len(data.shape)
    if both:
        shape[call.axis(call.integer("axis"), len(data.shape))] = -1
    if len(both) > 1:
        raise call.fail(f"scale is {list(scale.shape)}, zero_point {list(zero.shape)}")
    blocks, offsets = (np.broadcast_to(part, both).reshape(shape) for part in (scale, zero))
    if not _divides(blocks.shape, data.shape):
        raise call.fail(f"scale is {list(scale.shape)} for data of {list(data.shape)}")
    return Scaled(data, blocks, offsets, call.element("scale"))


def _packed_indices(call: Call) -> Stored:
    lut, shape = call.array("lut"), _packed_shape(call)
    bits = int(math.log2(lut.size)) if lut.ndim == 1 and lut.size else 0
    count = math.prod(shape)
    data = call.stored("indices")
    if 1 << bits != lut.size or data.shape != (-(-bits * count // 8),) or bits not in {*_BITS, 8}:
        raise call.fail(f"indices are {list(data.shape)}, lut {list(lut.shape)} for {list(shape)}")
    call.reserve(shape, 2)
    raw = dense(data).astype(np.uint8, copy=False)
    codes = raw if bits == 8 else unpack(raw, _BITS[bits], count)
    return Reshaped(Palettized(Dense(codes, Element.UINT8), Palette(lut[None], call.element("lut"), (count,))), shape)


def _packed_mask(call: Call) -> Stored:
    shape = _packed_shape(call)
    data, count = call.stored("mask"), math.prod(shape)
    if data.shape != (-(-count // 8),):
        raise call.fail(f"mask is {list(data.shape)} for {list(shape)}")
    call.reserve(shape)
    mask = unpack(dense(data).astype(np.uint8, copy=False), Element.UINT1, count).reshape(shape)
    kept = Dense(mask, Element.UINT1)
    return Sparse(kept, Nonzeros(kept, _flat(call, "nonzero_data"), element=call.element("nonzero_data")))


def _packed_shape(call: Call) -> tuple[int, ...]:
    shape = call.integers("shape")
    if not 1 <= len(shape) <= MAX_RANK or math.prod(shape) > MAX_ELEMENTS or min(shape) < 0:
        raise call.fail(f"shape is {list(shape)!s:.80}")
    return shape


@operation("dequantize", operands=("scale",))
def dequantize(call: Call) -> Array:
    """`scale * (input - zero_point)` of values that are computed."""
    data, scale, zero = _affine(call)
    return np.asarray((data.astype(np.float32) - zero) * scale)


@operation("quantize", operands=("input", "scale"), result=Result.DECLARED)
def quantize(call: Call) -> Array:
    """`clip(round(input / scale) + zero_point)`."""
    data, scale, zero = _affine(call)
    target = CAST_NAMES.get(call.text("output_dtype"))
    if target not in (Element.INT8, Element.UINT8):
        raise call.fail(f"output_dtype is {call.text('output_dtype')!r:.40}, expected int8 or uint8")
    limits = np.iinfo(target.stored)
    codes: Array = np.clip(np.rint(data / scale) + zero, limits.min, limits.max)
    return codes.astype(target.stored)


def _affine(call: Call) -> tuple[Array, Array, Array]:
    data, scale = call.array("input"), call.array("scale")
    zero = call.array("zero_point").astype(np.float32) if call.has("zero_point") else np.zeros_like(scale)
    shape = [1] * data.ndim
    if scale.ndim:
        shape[call.axis(call.integer("axis"), data.ndim)] = -1
    if scale.ndim > 1 or zero.shape != scale.shape or not scale.all():
        raise call.fail(f"scale is {list(scale.shape)}, zero_point {list(zero.shape)}, or a scale is 0")
    call.broadcast(data, scale.reshape(shape))
    return data, scale.reshape(shape), zero.reshape(shape)
