"""The numpy reference of the operators."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitnet_onnx.bitlinear import BitLinearAttributes, PackedLinear, bit_embedding, bitlinear
from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import Grid, QuantizedTensor

CASES = list(
    itertools.product(
        [(Grid(2, 2), "tensor"), (Grid(2, 1), "row"), (Grid(4, 8, 32), "group"), (Grid(8, 128), "row")],
        [(1, 1), (70, 100)],
    )
)


def random_linear(grid: Grid, scales: str, rows: int, columns: int, **options: object) -> PackedLinear:
    rng = np.random.default_rng(rows + columns + grid.bits)
    raw = rng.integers(0, grid.levels, (rows, columns), dtype=np.uint8)
    shape = {"tensor": (1,), "row": (rows,), "group": (rows, grid.groups(columns))}[scales]
    scale = (rng.random(shape) - 0.5).astype(np.float32)
    return PackedLinear.from_quantized(QuantizedTensor(raw, scale, grid), **options)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_with_integers_for_activations_the_result_is_the_matrix_product(kind, shape) -> None:
    """A token of integers whose peak is 127 is its own quantization: nothing is lost but float32 rounding."""
    rows, columns = shape
    linear = random_linear(*kind, rows, columns, bias=np.arange(rows, dtype=np.float32))
    x = np.random.default_rng(1).integers(-127, 128, (2, 3, columns)).astype(np.float32)
    x[..., 0] = 127
    expected = x.astype(np.float64) @ linear.unpacked().dequantize().astype(np.float64).T + np.arange(rows)
    np.testing.assert_allclose(bitlinear(x, linear), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_16_bit_activations_keep_integers_up_to_their_peak(kind, shape) -> None:
    rows, columns = shape
    linear = random_linear(*kind, rows, columns, activation_bits=16)
    x = np.random.default_rng(1).integers(-32512, 32513, (4, columns)).astype(np.float32)
    x[..., 0] = 32512
    expected = x.astype(np.float64) @ linear.unpacked().dequantize().astype(np.float64).T
    np.testing.assert_allclose(bitlinear(x, linear), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_sums_of_16_bit_activations_are_rounded_once() -> None:
    """A sum a hair above the middle of two floats: rounding its parts first would lose the hair."""
    sums = (1 << 33) + (1 << 9) + 1  # floats there are 1024 apart
    columns = 4096
    x = np.zeros((1, columns), np.float32)
    weights = np.zeros((1, columns), np.uint8)
    x[0, 0] = 32512
    full = 32512 * 255
    count, rest = divmod(sums, full)
    weights[0, :count], x[0, :count] = 255, 32512
    weights[0, count], x[0, count] = 255, rest // 255
    weights[0, count + 1], x[0, count + 1] = 1, rest % 255
    linear = PackedLinear.from_quantized(
        QuantizedTensor(weights, np.array([32512], np.float32), Grid(8, 0)), activation_bits=16
    )
    # scale / s is 32512 / (32512 / 32512)
    assert bitlinear(x, linear)[0, 0] == np.float32(np.float32((1 << 33) + (1 << 10)) * np.float32(32512))


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_float_activations_give_the_matrix_product(kind, shape) -> None:
    rows, columns = shape
    linear = random_linear(*kind, rows, columns, activation_bits=0)
    x = np.random.default_rng(1).standard_normal((5, columns)).astype(np.float32)
    expected = x.astype(np.float64) @ linear.unpacked().dequantize().astype(np.float64).T
    np.testing.assert_allclose(bitlinear(x, linear), expected, rtol=1e-5, atol=1e-3)


def test_the_fused_norm_comes_first() -> None:
    weight = np.linspace(1, 2, 32, dtype=np.float32)
    plain = random_linear(Grid(4, 8), "row", 8, 32)
    fused = random_linear(Grid(4, 8), "row", 8, 32, norm_weight=weight, epsilon=1e-6)
    x = np.random.default_rng(2).standard_normal((4, 32)).astype(np.float32)
    from bitnet_onnx.activations import rms_norm

    np.testing.assert_array_equal(bitlinear(x, fused), bitlinear(rms_norm(x, weight, 1e-6), plain))


def test_special_tokens() -> None:
    bias = np.arange(70, dtype=np.float32)
    linear = random_linear(Grid(4, 8, 32), "group", 70, 100, bias=bias)
    x = np.ones((4, 100), np.float32)
    x[0], x[1, 5], x[2, 5] = 0, np.nan, np.inf
    y = bitlinear(x, linear)
    np.testing.assert_array_equal(y[0], bias)
    assert np.isnan(y[1:3]).all()
    assert np.isfinite(y[3]).all()
    assert bitlinear(x[:0], linear).shape == (0, 70)


@pytest.mark.parametrize("activation_bits", [8, 16])
def test_extremes_do_not_overflow_the_sum(activation_bits: int) -> None:
    columns = (1 << 31) // (128 * 255) - 1
    raw = np.full((1, columns), 255, np.uint8)
    linear = PackedLinear.from_quantized(
        QuantizedTensor(raw, np.ones(1, np.float32), Grid(8, 0)), activation_bits=activation_bits
    )
    x = np.full((1, columns), -1, np.float32)
    assert bitlinear(x, linear)[0, 0] == pytest.approx(-255.0 * columns, rel=1e-6)


def test_float16_in_float16_out() -> None:
    linear = random_linear(Grid(2, 2), "row", 6, 8)
    x = np.random.default_rng(3).standard_normal((2, 8)).astype(np.float16)
    y = bitlinear(x, linear)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, bitlinear(x.astype(np.float32), linear).astype(np.float16))


@pytest.mark.parametrize("x", [np.ones((2, 3), np.float32), np.float32(1)])
def test_a_wrong_last_axis_is_refused(x: np.ndarray) -> None:
    with pytest.raises(InputError, match="its last axis must be in_features = 8"):
        bitlinear(np.asarray(x), random_linear(Grid(2, 2), "row", 6, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((0, 1, Grid(2, 2)), "both must be >= 1"),
        ((1, 0, Grid(2, 2)), "both must be >= 1"),
        ((1, 1, Grid(2, 2), 4), "activation_bits is 4: it must be 0, 8 or 16"),
        ((70000, 1, Grid(8, 128)), "can overflow a 32-bit sum"),
    ],
)
def test_attributes_check_themselves(fields: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BitLinearAttributes(*fields)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_embedding_takes_rows(kind, shape) -> None:
    rows, columns = shape
    table = random_linear(*kind, rows, columns)
    ids = np.array([[0, rows - 1, 0]])
    np.testing.assert_array_equal(bit_embedding(ids, table), table.unpacked().dequantize()[ids])
    for wrong in (-1, rows):
        with pytest.raises(InputError, match=f"outside 0 .. {rows - 1}"):
            bit_embedding(np.array([wrong]), table)
