"""What becomes of a matrix: codes that are stored, masters, ternary floats and ordinary ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from bitnet_onnx.converters.onnx._linears import quantize
from bitnet_onnx.integer import quantize_integer
from bitnet_onnx.metrics import relative_error
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantized import TERNARY, FloatArray, Grid, QuantizedTensor
from bitnet_onnx.ternary import quantize_absmean

RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((48, 96), np.float32)
STORED_TERNARY = QuantizedTensor(
    RNG.integers(1, 4, (48, 96), np.uint8), RNG.random((48, 3), np.float32), Grid(2, 2, group_size=32)
)
STORED_INT2 = QuantizedTensor(RNG.integers(0, 4, (48, 96), np.uint8), np.ones(1, np.float32), Grid(2, 1))
STORED_INT4 = quantize_integer(FLOATS, 4, 32)


@dataclass
class OneMatrix:
    """A model of one matrix, whose reads are counted."""

    weight: FloatArray
    stored: QuantizedTensor | None = None
    master: bool = False
    reads: int = 0
    rounded: int = 0

    def shape(self, role: str) -> tuple[int, ...]:
        assert role == "layers.0.mlp.up_proj.weight"
        return self.weight.shape

    def read(self, role: str) -> FloatArray:
        return self.weight

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        assert role == "layers.0.mlp.up_proj.weight"
        self.reads += 1
        return self.weight[start:stop]

    def quantized(self, role: str) -> QuantizedTensor | None:
        assert role == "layers.0.mlp.up_proj"
        self.rounded += 1
        return self.stored

    def is_master(self, role: str) -> bool:
        assert role == "layers.0.mlp.up_proj"
        return self.master


def result(tensors: OneMatrix, precision: Precision) -> QuantizedTensor | None:
    tensor, record = quantize(tensors, "layers.0.mlp.up_proj", precision)
    assert record.shape == (48, 96)
    if tensor is None:
        assert (record.weights, record.bits_per_weight, record.relative_error) == (Weights.FLOAT32, 32, 0)
    else:
        assert record.bits_per_weight == tensor.bits_per_weight()
        assert record.group_size == tensor.grid.group_size
        assert record.relative_error == pytest.approx(relative_error(tensors.weight, tensor.dequantize()), rel=1e-9)
    return tensor


@pytest.mark.parametrize("stored", [STORED_TERNARY, STORED_INT2, STORED_INT4])
@pytest.mark.parametrize("weights", [Weights.AUTO, Weights.KEEP])
def test_stored_codes_stay(stored: QuantizedTensor, weights: Weights) -> None:
    tensors = OneMatrix(stored.dequantize(), stored)
    assert result(tensors, Precision(weights)) is stored
    assert tensors.reads == 0


def test_a_head_that_is_stored_in_codes_stays() -> None:
    tensors = OneMatrix(STORED_TERNARY.dequantize(), STORED_TERNARY)
    assert result(tensors, Policy().precision("lm_head")) is STORED_TERNARY


@pytest.mark.parametrize("stored", [STORED_TERNARY, STORED_INT4])
@pytest.mark.parametrize(("weights", "bits"), [(Weights.INT4, 4), (Weights.INT6, 6), (Weights.INT8, 8)])
def test_another_precision_is_made_of_their_values(stored: QuantizedTensor, weights: Weights, bits: int) -> None:
    tensor = result(OneMatrix(stored.dequantize(), stored), Precision(weights, 0))
    assert tensor is not None
    expected = quantize_integer(stored.dequantize(), bits)
    np.testing.assert_array_equal(tensor.raw, expected.raw)
    np.testing.assert_array_equal(tensor.scale, expected.scale)


@pytest.mark.parametrize(
    ("stored", "name"),
    [(STORED_TERNARY, Weights.TERNARY), (STORED_INT2, Weights.INT2), (STORED_INT4, Weights.INT4)],
)
def test_the_record_says_what_the_codes_are(stored: QuantizedTensor, name: Weights) -> None:
    tensors = OneMatrix(stored.dequantize(), stored)
    kept, record = quantize(tensors, "layers.0.mlp.up_proj", Precision(Weights.AUTO))
    assert kept is stored
    assert record.weights is name
    assert Precision(name, stored.grid.group_size).keeps(stored.grid)


def test_ternary_keeps_ternary_codes_and_no_others() -> None:
    ternary = Precision(Weights.TERNARY)
    assert result(OneMatrix(STORED_TERNARY.dequantize(), STORED_TERNARY), ternary) is STORED_TERNARY
    for stored in (STORED_INT2, STORED_INT4):
        tensor = result(OneMatrix(stored.dequantize(), stored), ternary)
        assert tensor is not None
        assert tensor.grid == TERNARY
    assert result(OneMatrix(STORED_INT4.dequantize(), STORED_INT4), Precision(Weights.FLOAT32)) is None


@pytest.mark.parametrize(
    ("weights", "asked"),
    [(Weights.AUTO, 1), (Weights.KEEP, 1), (Weights.TERNARY, 1), (Weights.INT4, 0), (Weights.INT8, 0)],
)
def test_a_master_is_rounded_in_every_forward_only_where_that_is_kept(weights: Weights, asked: int) -> None:
    master = OneMatrix(FLOATS, quantize_absmean(FLOATS), master=True)
    tensor, _ = quantize(master, "layers.0.mlp.up_proj", Precision(weights, 0))
    assert master.rounded == asked
    assert (tensor is master.stored) is bool(asked)


def test_masters_become_ternary_where_nothing_else_is_said() -> None:
    tensor = result(OneMatrix(FLOATS, master=True), Precision(Weights.AUTO))
    assert tensor is not None
    expected = quantize_absmean(FLOATS)
    np.testing.assert_array_equal(tensor.raw, expected.raw)
    np.testing.assert_array_equal(tensor.scale, expected.scale)
    assert result(OneMatrix(FLOATS, master=True), Precision(Weights.KEEP)) is None
    other = result(OneMatrix(FLOATS, master=True), Precision(Weights.INT8, 0))
    assert other is not None
    assert other.grid.bits == 8


@pytest.mark.parametrize("master", [False, True])
def test_ternary_floats_are_taken_as_they_are(master: bool) -> None:
    weight = STORED_TERNARY.dequantize()
    for weights in (Weights.AUTO, Weights.KEEP, Weights.TERNARY):
        tensor = result(OneMatrix(weight, master=master), Precision(weights))
        assert tensor is not None
        np.testing.assert_array_equal(tensor.dequantize(), weight)


def test_ordinary_floats() -> None:
    for precision, bits in ((Precision(Weights.AUTO), 4), (Policy().precision("lm_head"), 8)):
        tensor = result(OneMatrix(FLOATS), precision)
        assert tensor is not None
        assert tensor.grid.bits == bits
    assert result(OneMatrix(FLOATS), Precision(Weights.KEEP)) is None
