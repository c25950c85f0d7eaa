"""Matrices of a Core ML package: what MIL decompresses is what was quantized, and no sum can overflow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coreml_packages import Saved, factor_name, needs_coremltools, write_coreml
from random_decoders import BASE, FLOAT, RandomDecoder

from bitnet_onnx.converters.coreml._tools import load_tools
from bitnet_onnx.converters.coreml._weight_file import WeightFile
from bitnet_onnx.converters.coreml._weights import Encoding, write_codes, write_floats
from bitnet_onnx.converters.coreml.options import CoreMLOptions, TernaryStorage
from bitnet_onnx.converters.onnx._linears import quantize
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantization.method import MethodName
from bitnet_onnx.quantized import TERNARY, Grid, QuantizedTensor

pytestmark = needs_coremltools

#: One layer, with rows that are no whole number of groups.
SPEC = replace(BASE, num_hidden_layers=1, intermediate_size=172, context_length=32)
HEAD = Precision(Weights.INT8, 0, 16)
DOWN = "layers.0.mlp.down_proj"


def _policy(weights: Weights, group_size: int = 0, head: Precision = HEAD) -> Policy:
    return Policy(Precision(weights, group_size), head)


@pytest.mark.parametrize(
    ("policy", "options", "operation", "bits"),
    [
        (_policy(Weights.TERNARY), CoreMLOptions(), "constexpr_lut_to_dense", 2.02),
        (_policy(Weights.TERNARY), CoreMLOptions(ternary=TernaryStorage.SPARSE), "constexpr_sparse_to_dense", 1.75),
        (_policy(Weights.INT4), CoreMLOptions(), "constexpr_blockwise_shift_scale", 4.2),
        (_policy(Weights.INT8), CoreMLOptions(), "constexpr_blockwise_shift_scale", 8.2),
        (_policy(Weights.INT6, head=Precision(Weights.INT6, 0, 16)), CoreMLOptions(), "constexpr_lut_to_dense", 6.4),
    ],
    ids=["ternary", "sparse", "int4", "int8", "int6"],
)
def test_codes_with_a_scale_for_each_row_are_exact(
    tmp_path: Path, policy: Policy, options: CoreMLOptions, operation: str, bits: float
) -> None:
    package, records = write_coreml(tmp_path, SPEC, policy, options)
    main = Saved.read(package).functions["main"]
    tensors = RandomDecoder(SPEC)
    for record in records:
        tensor, _ = quantize(tensors, record.role, policy.precision(record.role))
        assert tensor is not None
        dense, factor = main.dense(record.role), main.factor(record.role)
        assert np.array_equal(dense.astype(np.float32) * factor.reshape(-1, 1), tensor.dequantize())
        if record.role != "embed_tokens":
            _check_bound(dense)
    record = next(record for record in records if record.role == DOWN)
    assert main.named(DOWN.replace(".", "_") + "_weight").type == operation
    assert bits - 1 < record.bits_per_weight < bits


@pytest.mark.parametrize(
    ("policy", "operation", "bits"),
    [
        (_policy(Weights.INT4, 32), "constexpr_blockwise_shift_scale", (8.0, 8.3)),
        (_policy(Weights.INT8, 64), "constexpr_blockwise_shift_scale", (12.0, 12.3)),
        (_policy(Weights.INT6, 32), "constexpr_blockwise_shift_scale", (12.0, 12.3)),
        (
            Policy(Precision(Weights.TERNARY, 32, method=MethodName.LEAST_SQUARES), HEAD),
            "constexpr_lut_to_dense",
            (18.0, 18.3),
        ),
    ],
    ids=["int4", "int8", "int6", "ternary"],
)
def test_scales_of_groups_are_rounded_to_float16(
    tmp_path: Path, policy: Policy, operation: str, bits: tuple[float, float]
) -> None:
    package, records = write_coreml(tmp_path, SPEC, policy)
    main = Saved.read(package).functions["main"]
    tensors = RandomDecoder(SPEC)
    for record in records:
        tensor, _ = quantize(tensors, record.role, policy.precision(record.role))
        assert tensor is not None
        dense, factor = main.dense(record.role), main.factor(record.role)
        written = dense.astype(np.float32) * factor.reshape(-1, 1)
        np.testing.assert_allclose(written, tensor.dequantize(), rtol=2**-10)
        # One rounding of the scale for all codes of a group: ratios of weights are those of codes.
        assert np.array_equal(np.sign(written), np.sign(tensor.dequantize()))
        if record.role != "embed_tokens":
            _check_bound(dense)
    # Rows of 172 are blocks of 4: the short last group sets the size of all.
    record = next(record for record in records if record.role == DOWN)
    assert main.named(DOWN.replace(".", "_") + "_weight").type == operation
    assert bits[0] < record.bits_per_weight < bits[1]


def test_floats_are_rounded_to_float16(tmp_path: Path) -> None:
    package, records = write_coreml(tmp_path, SPEC, FLOAT)
    main = Saved.read(package).functions["main"]
    tensors = RandomDecoder(SPEC)
    for record in records:
        assert main.named(record.role.replace(".", "_") + "_weight").type == "const"
        assert not main.has(factor_name(record.role))
        assert np.array_equal(main.dense(record.role), tensors.read(f"{record.role}.weight").astype(np.float16))
        assert (record.bits_per_weight, record.activation_bits) == (16, 0)


class _Large(RandomDecoder):
    """Weights beyond float16 in one matrix, and one that is not finite in another."""

    def read(self, role: str) -> np.ndarray:
        values = super().read(role)
        if role == "layers.0.mlp.up_proj.weight":
            values[3, 5] = np.inf
        return values * np.float32(1e6) if role == f"{DOWN}.weight" else values


def test_large_floats_are_made_smaller_by_a_power_of_two(tmp_path: Path) -> None:
    weights, tensors = WeightFile(load_tools(), tmp_path / "weight.bin"), _Large(SPEC)
    matrix = write_floats(weights, DOWN, tensors)
    factor = weights[factor_name(DOWN)].values
    assert factor is not None
    assert np.log2(factor) % 1 == 0
    assert factor > 1
    assert matrix.bits == 16 * SPEC.hidden_size * SPEC.intermediate_size + 32
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight holds a value that is not finite"):
        write_floats(weights, "layers.0.mlp.up_proj", tensors)


def test_a_ternary_matrix_of_zeros_is_no_sparse_one(tmp_path: Path) -> None:
    weights = WeightFile(load_tools(), tmp_path / "weight.bin")
    zeros = QuantizedTensor(np.full((8, 32), 2, np.uint8), np.array([0.5], np.float32), TERNARY)
    assert write_codes(weights, "zeros", zeros, TernaryStorage.SPARSE).encoding is Encoding.LUT


def test_all_four_codes_of_two_bits(tmp_path: Path) -> None:
    weights = WeightFile(load_tools(), tmp_path / "weight.bin")
    raw = np.arange(8 * 32, dtype=np.uint8).reshape(8, 32) % 4
    four = QuantizedTensor(raw, np.arange(1, 9, dtype=np.float32), Grid(2, 1))
    matrix = write_codes(weights, "four", four, TernaryStorage.SPARSE)
    table = weights["four_table"].values
    assert table is not None
    assert matrix.encoding is Encoding.LUT
    assert (table.reshape(-1) / table.reshape(-1)[2]).tolist() == [-1, 0, 1, 2]
    weights.close()
    packed = (tmp_path / "weight.bin").read_bytes()
    start = int(np.frombuffer(packed, "<u8", 1, (weights["four_codes"].offset or 0) + 16)[0])
    assert packed[start] == 0b11100100


def _check_bound(dense: np.ndarray) -> None:
    """Whatever a token holds, 127 is the most that meets a weight."""
    assert np.abs(dense).astype(np.float64).sum(axis=1).max() * 127 <= np.finfo(np.float16).max
