"""The function bodies against the numpy reference, on ONNX Runtime without the operator library."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bitnet_onnx.activations import ACTIVATION_BITS
from bitnet_onnx.bitlinear import BitLinearAttributes, PackedLinear, bit_embedding, bitlinear
from bitnet_onnx.converters.onnx.bodies import (
    OPSET,
    Fallback,
    Variant,
    bit_embedding_body,
    bitlinear_body,
    embedding_overload,
)
from bitnet_onnx.package_format import OPERATOR_DOMAIN
from bitnet_onnx.quantized import Grid, QuantizedTensor


def random_linear(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    grid: Grid,
    *,
    scales: str = "row",
    norm: bool = False,
    bias: bool = False,
    activation_bits: int = 8,
) -> PackedLinear:
    low = 1 if grid.bits == 2 else 0
    raw = rng.integers(low, grid.levels, (rows, columns), dtype=np.uint8)
    shape = {"tensor": (1,), "row": (rows,), "group": (rows, grid.groups(columns))}[scales]
    scale = (rng.random(shape, dtype=np.float32) + 0.5) * np.where(rng.random(shape) < 0.3, -0.01, 0.01)
    return PackedLinear.from_quantized(
        QuantizedTensor(raw, scale.astype(np.float32), grid),
        norm_weight=rng.normal(1, 0.2, columns).astype(np.float32) if norm else None,
        bias=rng.normal(0, 1, rows).astype(np.float32) if bias else None,
        activation_bits=activation_bits,
    )


def session(body: ir.Function, inputs: dict[str, np.ndarray | None], attributes: dict[str, float], feed: str):
    """A one-node model whose constants are initializers, and its only input `feed`."""
    values = []
    initializers = []
    for name, array in inputs.items():
        if array is None:
            values.append(None)
        elif name == feed:
            dtype = ir.DataType.from_numpy(array.dtype)
            values.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([None] * array.ndim)))
        else:
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
            initializers.append(value)
            values.append(value)
    attrs = [
        ir.AttrFloat32(key, value) if key == "epsilon" else ir.AttrInt64(key, int(value))
        for key, value in attributes.items()
    ]
    node = ir.Node(OPERATOR_DOMAIN, body.name, values, attrs, overload=body.overload, name="/node")
    node.outputs[0].name = "Y"
    x = inputs[feed]
    node.outputs[0].dtype = ir.DataType.FLOAT if x.dtype == np.int64 else ir.DataType.from_numpy(x.dtype)
    node.outputs[0].shape = ir.Shape([None] * (x.ndim + (x.dtype == np.int64)))
    graph_input = next(value for value in values if value is not None and value.name == feed)
    graph = ir.Graph(
        [graph_input],
        node.outputs,
        nodes=[node],
        initializers=initializers,
        opset_imports={"": OPSET, OPERATOR_DOMAIN: 1},
        name="g",
    )
    model = ir.Model(graph, ir_version=10, functions=[body])
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def node_attributes(at: BitLinearAttributes) -> dict[str, float]:
    return {
        "in_features": at.in_features,
        "out_features": at.out_features,
        "bits": at.grid.bits,
        "zero_point": at.grid.zero_point,
        "group_size": at.grid.group_size,
        "activation_bits": at.activation_bits,
        "epsilon": at.epsilon,
    }


def run_body(linear: PackedLinear, x: np.ndarray, fallback: Fallback) -> np.ndarray:
    has_norm, has_bias = linear.norm_weight is not None, linear.bias is not None
    variant = Variant(linear.attributes, has_norm, has_bias, fallback)
    inputs = {"X": x, "W": linear.weight, "scale": linear.scale}
    if has_norm or has_bias:
        inputs["norm_weight"] = linear.norm_weight
    if has_bias:
        inputs["bias"] = linear.bias
    return session(bitlinear_body(variant), inputs, node_attributes(linear.attributes), "X").run(None, {"X": x})[0]


def tokens(rng: np.random.Generator, count: int, columns: int) -> np.ndarray:
    x = rng.normal(0, 1, (count, columns)).astype(np.float32)
    if count > 2:
        x[1] = 0
    return x


GRIDS = [
    (Grid(2, 2), "tensor"),
    (Grid(2, 2), "row"),
    (Grid(2, 2, 64), "group"),
    (Grid(2, 1), "row"),
    (Grid(4, 8), "row"),
    (Grid(4, 8, 32), "group"),
    (Grid(4, 3, 128), "group"),
    (Grid(6, 32, 96), "group"),
    (Grid(6, 7), "row"),
    (Grid(8, 128), "row"),
    (Grid(8, 200, 32), "group"),
]


@pytest.mark.parametrize(("grid", "scales"), GRIDS)
@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (64, 64), (70, 172), (130, 257)])
def test_exact_body_gives_the_bits_of_the_reference(grid, scales, rows, columns, activation_bits):
    rng = np.random.default_rng(rows + columns + grid.bits)
    inputs = itertools.cycle([(False, False), (True, False), (False, True), (True, True)])
    for count, (norm, bias) in zip((0, 1, 3, 8, 33), inputs, strict=False):
        options = {"scales": scales, "norm": norm, "bias": bias, "activation_bits": activation_bits}
        linear = random_linear(rng, rows, columns, grid, **options)
        x = tokens(rng, count, columns)
        np.testing.assert_array_equal(run_body(linear, x, Fallback.EXACT), bitlinear(x, linear))


@pytest.mark.parametrize(("activation_bits", "values"), [(8, (-1, 1)), (16, (-32384, 32383))])
def test_exact_body_with_extreme_activations_does_not_saturate(activation_bits, values):
    """The values for 16 bits have both digits near their extremes."""
    rng = np.random.default_rng(5)
    linear = random_linear(rng, 64, 4096, Grid(8, 0), activation_bits=activation_bits)
    linear.weight[:] = 255
    x = np.where(rng.random((4, 4096)) < 0.1, *values).astype(np.float32)
    x[2], x[3] = values
    x[:, 0] = max(values[1], 32512 if activation_bits == 16 else 0)
    np.testing.assert_array_equal(run_body(linear, x, Fallback.EXACT), bitlinear(x, linear))


@pytest.mark.parametrize("activation_bits", [8, 16])
def test_exact_body_keeps_nan_and_infinity_in_their_tokens(activation_bits):
    rng = np.random.default_rng(6)
    for grid, scales in ((Grid(2, 2), "tensor"), (Grid(4, 8, 32), "group")):
        linear = random_linear(rng, 66, 96, grid, scales=scales, bias=True, activation_bits=activation_bits)
        x = tokens(rng, 5, 96)
        x[0, 3], x[2, 95], x[4, 0] = np.nan, np.inf, 1e38
        result = run_body(linear, x, Fallback.EXACT)
        np.testing.assert_array_equal(result, bitlinear(x, linear))
        assert np.isnan(result[[0, 2]]).all()
        np.testing.assert_array_equal(result[1], linear.bias)


@pytest.mark.parametrize("activation_bits", [8, 16])
def test_exact_body_of_float16(activation_bits):
    rng = np.random.default_rng(7)
    linear = random_linear(rng, 66, 100, Grid(4, 8), norm=True, bias=True, activation_bits=activation_bits)
    x = tokens(rng, 9, 100).astype(np.float16)
    result = run_body(linear, x, Fallback.EXACT)
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result, bitlinear(x, linear))


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize(("grid", "scales"), GRIDS)
def test_fast_body_is_within_two_percent(grid, scales, activation_bits):
    rng = np.random.default_rng(grid.bits // 2)
    for (rows, columns), norm in itertools.product([(70, 172), (128, 576)], (False, True)):
        options = {"scales": scales, "norm": norm, "bias": True, "activation_bits": activation_bits}
        linear = random_linear(rng, rows, columns, grid, **options)
        x = tokens(rng, 6, columns)
        expected = bitlinear(x, linear)
        error = np.abs(run_body(linear, x, Fallback.FAST) - expected).max(axis=1)
        assert (error <= 0.02 * np.abs(expected).max(axis=1)).all()


@pytest.mark.parametrize("fallback", list(Fallback))
@pytest.mark.parametrize(("grid", "scales"), GRIDS)
def test_body_with_float_activations(grid, scales, fallback):
    rng = np.random.default_rng(8)
    for rows, columns in ((1, 1), (70, 172)):
        linear = random_linear(rng, rows, columns, grid, scales=scales, bias=True, activation_bits=0)
        x = tokens(rng, 5, columns)
        np.testing.assert_allclose(run_body(linear, x, fallback), bitlinear(x, linear), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("grid", "scales"), GRIDS)
def test_embedding_body_gives_the_rows(grid, scales):
    rng = np.random.default_rng(grid.bits // 2)
    linear = random_linear(rng, 131, 172, grid, scales=scales)
    body = bit_embedding_body(linear.attributes, per_tensor=scales == "tensor")
    attributes = node_attributes(linear.attributes)
    del attributes["activation_bits"], attributes["epsilon"]
    for ids in (np.array([[0, 130, 64], [63, 1, 1]]), np.zeros((1, 0), np.int64)):
        run = session(body, {"ids": ids, "W": linear.weight, "scale": linear.scale}, attributes, "ids")
        np.testing.assert_array_equal(run.run(None, {"ids": ids})[0], bit_embedding(ids, linear))


def test_overloads_tell_variants_apart():
    names = set()
    both = (False, True)
    for (grid, _), norm, bias, fallback, bits in itertools.product(GRIDS, both, both, Fallback, ACTIVATION_BITS):
        at = BitLinearAttributes(64, 65, grid, bits)
        names.add(Variant(at, norm, bias, fallback).overload)
    assert len(names) == len({grid for grid, _ in GRIDS}) * 24
    assert "k64_n65_b6_z32_g96_a16_bias_exact" in names
    at = BitLinearAttributes(64, 65, Grid(2, 2))
    assert embedding_overload(at, True) != embedding_overload(at, False)
