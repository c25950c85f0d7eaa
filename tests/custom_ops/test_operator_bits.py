"""The kernels and the numpy reference give the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from bitnet_onnx.bitlinear import bit_embedding, bitlinear

SHAPES = [(1, 1), (3, 5), (64, 64), (65, 63), (70, 130), (129, 517)]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"scale": "one", "bias": True},
    {"norm": True, "epsilon": 1e-3},
    {"bias": True},
    {"norm": True, "bias": True},
    {"group_size": 32},
    {"group_size": 64, "norm": True, "bias": True},
    {"group_size": 1024, "bias": True},
    {"activation_bits": 16},
    {"activation_bits": 16, "scale": "one", "norm": True, "bias": True},
    {"activation_bits": 16, "group_size": 32, "bias": True},
    {"activation_bits": 16, "group_size": 64, "norm": True},
    {"activation_bits": 16, "group_size": 1024},
    {"activation_bits": 0},
    {"activation_bits": 0, "group_size": 32, "norm": True, "bias": True},
    {"activation_bits": 0, "scale": "one", "bias": True},
]


def activations(tokens: int, columns: int) -> np.ndarray:
    x = np.random.default_rng(tokens + columns).standard_normal((tokens, columns)).astype(np.float32)
    if tokens > 2:
        x[1] = 0
        x[2, columns // 2] = np.nan
    if tokens > 6:
        x[3] = 1e38
        x[4, 0] = -np.inf
        x[5] = 1e-20
        x[6] = -0.0
    return x


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    width = np.uint16 if expected.dtype == np.float16 else np.uint32
    np.testing.assert_array_equal(actual[~nan].view(width), expected[~nan].view(width))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32(make_linear, one_node, shape, bits, variant) -> None:
    linear = make_linear(*shape, bits=bits, **variant)
    session = one_node.linear(linear).session()
    for tokens in (0, 1, 2, 3, 8, 9, 33):
        x = activations(tokens, shape[1])
        assert_same_bits(session.run(None, {"X": x})[0], bitlinear(x, linear))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_float16(make_linear, one_node, variant) -> None:
    linear = make_linear(70, 130, bits=4, **variant)
    session = one_node.linear(linear, TensorProto.FLOAT16).session()
    for tokens in (0, 1, 8):
        with np.errstate(over="ignore"):
            x = activations(tokens, 130).astype(np.float16)
        assert_same_bits(session.run(None, {"X": x})[0], bitlinear(x, linear))


def test_every_float16_value_survives(make_linear, one_node) -> None:
    """One column, weight 1, float activations: the output is the input (and -0 + 0 is 0), for all values."""
    linear = make_linear(1, 1, activation_bits=0)
    linear.weight[:] = 3
    linear.scale[:] = 1
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 1)
    expected = np.where(x == 0, np.float16(0), x)
    assert_same_bits(one_node.linear(linear, TensorProto.FLOAT16).run(x), expected)


def test_float16_rounding_of_results(make_linear, one_node) -> None:
    """Results between two float16 values, subnormal and beyond the largest, round as numpy rounds them."""
    rows = 4096
    linear = make_linear(rows, 1, activation_bits=0)
    rng = np.random.default_rng(5)
    linear.scale[:] = (2.0 ** rng.uniform(-27, 17, rows)).astype(np.float32)
    linear.scale[:6] = [65519.996, 65520.0, 2.0**-25, 2.0**-25 * 1.0000001, 2.0**-14 * 0.99999, 65504.0]
    x = np.ones((1, 1), np.float16)
    assert_same_bits(one_node.linear(linear, TensorProto.FLOAT16).run(x), bitlinear(x, linear))


@pytest.mark.parametrize("zero_point", [0, 1, 3])
def test_zero_points(make_linear, one_node, zero_point) -> None:
    linear = make_linear(66, 77, zero_point=zero_point)
    x = activations(8, 77)
    assert_same_bits(one_node.linear(linear).run(x), bitlinear(x, linear))


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 1, 6), (4, 0, 6)], ids=str)
def test_leading_dimensions_of_x(make_linear, one_node, shape) -> None:
    linear = make_linear(5, 6)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    assert_same_bits(one_node.linear(linear).run(x), bitlinear(x, linear))


def test_only_the_spoiled_token_is_nan(make_linear, one_node) -> None:
    x = activations(8, 130)
    y = one_node.linear(make_linear(70, 130, bits=4, group_size=32, bias=True)).run(x)
    np.testing.assert_array_equal(np.isnan(y).all(axis=1), ~np.isfinite(x).all(axis=1))
    np.testing.assert_array_equal(np.isnan(y).any(axis=1), ~np.isfinite(x).all(axis=1))


def test_zero_token_gives_exactly_the_bias(make_linear, one_node) -> None:
    linear = make_linear(70, 130, bias=True)
    assert_same_bits(one_node.linear(linear).run(np.zeros((1, 130), np.float32))[0], linear.bias)


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("value", [32512, -32512, 32383, -32384])
def test_sums_of_extremes_do_not_overflow(make_linear, one_node, bits, value, activation_bits) -> None:
    """All high digits at their extremes, then all low ones (126 and 127, -126 and -128)."""
    linear = make_linear(3, 16384, bits=bits, zero_point=0, activation_bits=activation_bits)
    linear.weight[:] = 0xFF
    x = np.full((4, 16384), value, np.float32)
    x[:, 0] = 32512
    assert_same_bits(one_node.linear(linear).run(x), bitlinear(x, linear))


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_every_value_of_16_bit_activations(make_linear, one_node, bits) -> None:
    """A token of all integers from -32512 to 32512, one in each column, is its own quantization."""
    values = np.arange(-32512, 32513, dtype=np.float32)
    columns = 4096
    x = np.zeros((-(-len(values) // (columns - 1)), columns), np.float32)
    x[:, 0] = 32512
    x[:, 1:].flat[: len(values)] = values
    linear = make_linear(66, columns, bits=bits, activation_bits=16)
    assert_same_bits(one_node.linear(linear).run(x), bitlinear(x, linear))


def test_more_tokens_than_one_block(make_linear, one_node) -> None:
    linear = make_linear(66, 40, bits=4, bias=True)
    x = activations(601, 40)
    assert_same_bits(one_node.linear(linear).run(x, threads=2), bitlinear(x, linear))


@pytest.mark.parametrize("variant", [{}, {"scale": "one"}, {"group_size": 32}, {"group_size": 96}], ids=str)
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_embedding(make_linear, one_node, bits, variant) -> None:
    table = make_linear(131, 77, bits=bits, **variant)
    session = one_node.embedding(table).session(threads=2)
    rng = np.random.default_rng(2)
    for shape in [(), (0,), (1,), (2, 3), (40,)]:
        ids = rng.integers(0, 131, shape, np.int64)
        assert_same_bits(session.run(None, {"X": ids})[0], bit_embedding(ids, table))
