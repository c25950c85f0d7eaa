"""The shaders of BitLinear and BitEmbedding against the numpy reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from metal_cases import BITS, SIZES, activations, linears, same, variants
from metal_emulation import Emulation
from metal_linear import MetalLinear, matmul, matvec_small
from packed_linears import random_linear

from bitnet_onnx.activations import quantize_activations, rms_norm
from bitnet_onnx.bitlinear import PackedLinear, bit_embedding, bitlinear

TOKENS = [1, 2, 5, 8, 9, 33]


@pytest.mark.parametrize("tokens", TOKENS)
def test_equals_the_reference(device: Emulation, tokens: int) -> None:
    for linear in linears():
        x = activations(tokens, linear.attributes.in_features)
        expected, on_device = bitlinear(x, linear), MetalLinear(device, linear)
        codes = on_device.quantize(x)
        for variant in variants(linear.attributes.grid.bits, tokens):
            same(on_device.multiply(codes, variant), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(opened: Emulation, size: tuple[int, int]) -> None:
    for bits in BITS:
        linear = random_linear(*size, bits=bits, bias=True)
        x = activations(1, size[1])
        for variant in variants(bits, 1):
            same(MetalLinear(opened, linear)(x, variant), bitlinear(x, linear))


@pytest.mark.parametrize("simdgroups", [1, 4, 32])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_codes_factors_and_sums(device: Emulation, half: bool, norm: bool, simdgroups: int) -> None:
    for columns, group_size in ((1, 0), (64, 0), (100, 32), (333, 64), (40, 64)):
        linear = random_linear(3, columns, group_size=group_size, norm=norm)
        x = activations(9, columns)
        if half:
            with np.errstate(over="ignore"):
                x = x.astype(np.float16)
        got = MetalLinear(device, linear).quantize(x, simdgroups)
        tokens = x.astype(np.float32)
        if norm:
            assert linear.norm_weight is not None
            tokens = rms_norm(tokens, linear.norm_weight, linear.attributes.epsilon)
        codes, factor = quantize_activations(tokens)
        np.testing.assert_array_equal(got.codes[:, :columns], codes)
        assert not got.codes[:, columns:].any()
        same(got.factor, factor)
        starts = np.arange(0, columns, group_size or columns)
        np.testing.assert_array_equal(got.sums, np.add.reduceat(codes.astype(np.int32), starts, axis=1))


@pytest.mark.parametrize("group_size", [0, 64])
@pytest.mark.parametrize("bits", BITS)
def test_half(device: Emulation, bits: int, group_size: int) -> None:
    """X and Y in half: some results are subnormal, some overflow."""
    linear = random_linear(45, 200, bits=bits, group_size=group_size, norm=bits == 4, bias=bits == 6)
    linear.scale[...] *= 10.0 ** np.linspace(-6, 6, linear.scale.size).reshape(linear.scale.shape).astype(np.float32)
    for tokens in (1, 9):
        with np.errstate(over="ignore"):
            x = activations(tokens, 200).astype(np.float16)
        expected = bitlinear(x, linear)
        for variant in variants(bits, tokens):
            same(MetalLinear(device, linear)(x, variant), expected)


@pytest.mark.parametrize("bits", BITS)
def test_largest_sums(opened: Emulation, bits: int) -> None:
    """Every product is as large as it may be, over more columns (but with 2 bits) than a float holds exactly."""
    columns = {2: 640, 4: 17024, 6: 4224, 8: 1984}[bits]
    linear = random_linear(5, columns, bits=bits, zero_point=0)
    raw = np.full((5, columns), (1 << bits) - 1, np.uint8)
    raw[1::2, ::3] -= 1
    unpacked = linear.unpacked()
    linear = PackedLinear.from_quantized(type(unpacked)(raw, unpacked.scale, unpacked.grid))
    x = np.ones((2, columns), np.float32)
    x[1, ::5] = -126 / 127
    for variant in (matmul(True), matmul(False), matvec_small(2)):
        same(MetalLinear(opened, linear)(x, variant), bitlinear(x, linear))


@pytest.mark.parametrize("half", [False, True])
def test_embedding(device: Emulation, half: bool) -> None:
    for linear in linears():
        rows = linear.attributes.out_features
        ids = np.array([0, rows - 1, rows // 2, 0], np.int64)
        expected = bit_embedding(ids, linear)
        same(MetalLinear(device, linear).embed(ids, half), expected.astype(np.float16) if half else expected)


def test_embedding_of_unknown_ids(opened: Emulation) -> None:
    linear = random_linear(40, 70)
    got = MetalLinear(opened, linear).embed(np.array([-1, 40, 39, 1 << 40], np.int64))
    assert np.isnan(got[[0, 1, 3]]).all()
    same(got[2:3], bit_embedding(np.array([39]), linear))
