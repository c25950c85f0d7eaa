"""The shaders of norms and elementwise operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from metal_emulation import Emulation, constants, structures
from onnx import TensorProto, helper

from bitnet_onnx.activations import lanes16, rms_norm
from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.gated import Activation

Array = npt.NDArray[np.float32 | np.float16]

TYPES = [np.float32, np.float16]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 80.0, -80.0, 88.0, -88.0, 0.625, -0.625, 1e-4, 300.0]


def run(
    device: Emulation,
    kernel: str,
    values: Mapping[str, int | float],
    settings: Mapping[str, int],
    buffers: Mapping[str, np.ndarray],
    grid: int,
    outputs: tuple[str, ...],
) -> None:
    structure = "NormArguments" if "norm" in kernel else f"{kernel.split('_')[0].capitalize()}Arguments"
    device.run(kernel, structures()[structure](**values), settings, buffers, (grid, 1, 1), outputs)


def rounded(x: npt.NDArray[np.float32], like: Array) -> Array:
    with np.errstate(over="ignore"):
        result: Array = x.astype(like.dtype)
    return result


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("width", [1, 15, 16, 300])
def test_rms_norm(device: Emulation, width: int, kind: type, residual: bool) -> None:
    rng = np.random.default_rng(width)
    x, added = (rng.standard_normal((5, width)).astype(kind) for _ in range(2))
    x[2], x[3, 0] = 0, np.nan
    weight = rng.standard_normal(width).astype(np.float32)
    for given in (weight, None):
        y, total = np.empty_like(x), np.empty_like(x)
        buffers = {"kNormX": x, "kNormY": y}
        if given is not None:
            buffers["kNormWeight"] = given
        if residual:
            buffers |= {"kNormResidual": added, "kNormSum": total}
        settings = {"Simdgroups": 4, "Half": kind == np.float16, "Norm": given is not None, "Residual": residual}
        outputs = ("kNormY", "kNormSum") if residual else ("kNormY",)
        run(device, "rms_norm", {"width": width, "epsilon": 1e-5}, settings, buffers, 5, outputs)
        row = rounded(x.astype(np.float32) + added.astype(np.float32), x) if residual else x
        if residual:
            np.testing.assert_array_equal(total, row)
        ones = np.ones(width, np.float32)
        expected = rms_norm(row.astype(np.float32), ones if given is None else given, 1e-5)
        np.testing.assert_array_equal(y, rounded(expected, y))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("width", [1, 15, 16, 300])
def test_layer_norm(device: Emulation, width: int, kind: type, residual: bool) -> None:
    rng = np.random.default_rng(width)
    x, added = ((3 + rng.standard_normal((4, width))).astype(kind) for _ in range(2))
    weight, bias = (rng.standard_normal(width).astype(np.float32) for _ in range(2))
    y, total = np.empty_like(x), np.empty_like(x)
    buffers = {"kNormX": x, "kNormY": y, "kNormWeight": weight, "kNormBias": bias}
    if residual:
        buffers |= {"kNormResidual": added, "kNormSum": total}
    settings = {"Simdgroups": 2, "Half": kind == np.float16, "Norm": 1, "Bias": 1, "Residual": residual}
    outputs = ("kNormY", "kNormSum") if residual else ("kNormY",)
    run(device, "layer_norm", {"width": width, "epsilon": 1e-5}, settings, buffers, 4, outputs)
    row = (rounded(x.astype(np.float32) + added.astype(np.float32), x) if residual else x).astype(np.float32)
    deviation = row - (lanes16(row) / np.float32(width))[:, None]
    variance = lanes16(deviation * deviation) / np.float32(width)
    inverse = np.float32(1) / np.sqrt(variance + np.float32(1e-5))
    expected = (deviation * inverse[:, None]) * weight + bias
    np.testing.assert_array_equal(y, rounded(expected, y))


def gated(device: Emulation, activation: str, gate: Array, up: Array) -> Array:
    y = np.empty_like(gate)
    operation = constants()["kActivation" + activation.title().replace("_", "")]
    settings = {"Simdgroups": 2, "Half": gate.dtype == np.float16, "Operation": operation}
    values = {"rows": len(gate), "width": gate.shape[1], "stride": gate.shape[1]}
    buffers = {"kGatedGate": gate, "kGatedUp": up, "kGatedY": y}
    run(device, "gated", values, settings, buffers, -(-gate.size // 64), ("kGatedY",))
    return y


@pytest.mark.parametrize("activation", list(Activation))
def test_gated_equals_the_operator(opened: Emulation, activation: str) -> None:
    if library_path() is None:
        pytest.skip("the operator library is not built: no C++17 compiler when bitnet-onnx was installed")
    node = helper.make_node("GatedActivation", ["X", "up"], ["Y"], domain="bitnet", activation=activation)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("X", "up")]
    outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("bitnet", 1)]
    graph = helper.make_graph([node], "one_node", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    gate = (rng.standard_normal((7, 101)) * 10.0 ** rng.integers(-3, 3, (7, 101))).astype(np.float32)
    gate[0, : len(SPECIAL)] = SPECIAL
    up = rng.standard_normal(gate.shape).astype(np.float32)
    (expected,) = session.run(None, {"X": gate, "up": up})
    np.testing.assert_array_equal(gated(opened, activation, gate, up), expected)


def test_gated_side_by_side(device: Emulation) -> None:
    """One buffer of gates and ups, row by row."""
    x = np.random.default_rng(0).standard_normal((5, 66)).astype(np.float32)
    y = np.empty((5, 33), np.float32)
    settings = {"Simdgroups": 1, "Half": 0, "Operation": constants()["kActivationRelu2"]}
    arguments = structures()["GatedArguments"](rows=5, width=33, stride=66)
    buffers = {"kGatedGate": (x, 0), "kGatedUp": (x, 33), "kGatedY": y}
    device.run("gated", arguments, settings, buffers, (6, 1, 1), ("kGatedY",))
    np.testing.assert_array_equal(y, np.square(np.maximum(x[:, :33], 0)) * x[:, 33:])


def logistic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


#: In float64, and the units in the last place of float32 by which a shader may differ.
UNARY: dict[str, tuple[Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], int]] = {
    "kActivationRelu": (lambda x: np.maximum(x, 0), 0),
    "kActivationRelu2": (lambda x: np.square(np.maximum(x, 0)), 0),
    "kActivationSilu": (lambda x: x * logistic(x), 4),
    "kActivationQuickGelu": (lambda x: x * logistic(x * np.float64(np.float32(1.702))), 80),
    "kUnarySigmoid": (logistic, 4),
    "kUnaryTanh": (np.tanh, 3),
    "kUnaryScale": (lambda x: x * 3.5, 0),
    "kUnarySoftcap": (lambda x: 3.5 * np.tanh(x / 3.5), 4),
}


@pytest.mark.parametrize("name", UNARY)
def test_unary(opened: Emulation, name: str) -> None:
    function, units = UNARY[name]
    rng = np.random.default_rng(1)
    x = np.concatenate([np.float32(SPECIAL), rng.uniform(-20, 20, 500).astype(np.float32)])
    y = np.empty_like(x)
    settings = {"Simdgroups": 1, "Half": 0, "Operation": constants()[name]}
    values = {"count": x.size, "value": 3.5}
    run(opened, "unary", values, settings, {"kUnaryX": x, "kUnaryY": y}, -(-x.size // 32), ("kUnaryY",))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        expected = function(x.astype(np.float64)).astype(np.float32)
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(y[~finite], expected[~finite])
        error = np.abs(y[finite].astype(np.float64) - expected[finite])
        # exp is zero below -87, where it would be subnormal.
        assert (error <= units * np.spacing(np.abs(expected[finite])) + 2e-37).all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("b_count", [1, 21, 84])
def test_binary(device: Emulation, b_count: int, kind: type) -> None:
    rng = np.random.default_rng(b_count)
    a, b = rng.standard_normal(84).astype(kind), rng.standard_normal(b_count).astype(kind)
    wide = a.astype(np.float32), np.resize(b, 84).astype(np.float32)
    for name, expected in (("Add", wide[0] + wide[1]), ("Mul", wide[0] * wide[1]), ("Sub", wide[0] - wide[1])):
        y = np.empty_like(a)
        settings = {"Simdgroups": 1, "Half": kind == np.float16, "Operation": constants()[f"kBinary{name}"]}
        buffers = {"kBinaryA": a, "kBinaryB": b, "kBinaryY": y}
        run(device, "binary", {"count": 84, "b_count": b_count}, settings, buffers, 3, ("kBinaryY",))
        np.testing.assert_array_equal(y, expected.astype(kind))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 3, 5), (2, 3, 1)), ((5,), (2, 3, 5)), ((2, 1, 4, 1), (3, 1, 6)), ((), (7, 2)), ((1, 1), (1,))],
)
def test_broadcast_binary(device: Emulation, left: tuple[int, ...], right: tuple[int, ...], kind: type) -> None:
    rng = np.random.default_rng(len(left) + 10 * len(right))
    a, b = (np.asarray(rng.standard_normal(shape), kind) for shape in (left, right))
    expected = np.asarray(a.astype(np.float32) - b.astype(np.float32)).astype(kind)
    steps = [
        [0 if size == 1 else int(np.prod(shape[axis + 1 :], dtype=int)) for axis, size in enumerate(shape)]
        for shape in ((1,) * (expected.ndim - operand.ndim) + operand.shape for operand in (a, b))
    ]
    values = {"count": expected.size, "axes": expected.ndim}
    arguments = structures()["BroadcastArguments"](**values)
    for axis, size in enumerate(expected.shape):
        arguments.sizes[axis], arguments.a_steps[axis], arguments.b_steps[axis] = size, steps[0][axis], steps[1][axis]
    y = np.empty(expected.shape, kind)
    settings = {"Simdgroups": 1, "Half": kind == np.float16, "Operation": constants()["kBinarySub"]}
    buffers = {"kBroadcastA": a.reshape(-1), "kBroadcastB": b.reshape(-1), "kBroadcastY": y}
    device.run("broadcast_binary", arguments, settings, buffers, (-(-expected.size // 32), 1, 1), ("kBroadcastY",))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("kind", TYPES)
def test_gather_columns(device: Emulation, kind: type) -> None:
    x = np.random.default_rng(0).standard_normal((3, 10)).astype(kind)
    columns = np.array([9, -1, 0, 3, 3], np.int32)
    y = np.empty((3, 5), kind)
    buffers = {"kGatherX": x, "kGatherColumns": columns, "kGatherY": y}
    values = {"rows": 3, "width": 10, "selected": 5}
    settings = {"Simdgroups": 1, "Half": kind == np.float16}
    run(device, "gather_columns", values, settings, buffers, 1, ("kGatherY",))
    np.testing.assert_array_equal(y, np.where(columns < 0, kind(0), x[:, columns]))
