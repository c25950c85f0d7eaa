"""`bitnet::GatedActivation` against the numpy reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.gated import Activation, gated_activation

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 80.0, -80.0, 1e-40, 88.0, -88.0]


def gated_model(separate: bool = False, x_type: int = TensorProto.FLOAT, **attributes: object) -> bytes:
    names = ["X", "up"] if separate else ["X"]
    node = helper.make_node("GatedActivation", names, ["Y"], name="the_node", domain="bitnet", **attributes)
    inputs = [helper.make_tensor_value_info(name, x_type, None) for name in names]
    outputs = [helper.make_tensor_value_info("Y", x_type, None)]
    graph = helper.make_graph([node], "one_node", inputs, outputs)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("bitnet", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def open_model(model: bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(activation: str, x: np.ndarray, up: np.ndarray | None = None, threads: int = 1) -> np.ndarray:
    session = open_model(gated_model(up is not None, activation=activation), threads)
    result: np.ndarray = session.run(None, {"X": x} if up is None else {"X": x, "up": up})[0]
    return result


def close(activation: str, got: np.ndarray, expected: np.ndarray, gate: np.ndarray, up: np.ndarray) -> None:
    assert got.shape == expected.shape
    # Of gelu's tail below 0 the exponent is rounded: the error is small beside the operands, not beside the result.
    slack = 2e-7 * np.abs(gate * up) if activation in (Activation.GELU, Activation.GELU_TANH) else 0
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.where(finite, 0, got), np.where(finite, 0, expected))
    error = np.abs(np.where(finite, got, 0) - np.where(finite, expected, 0))
    assert (error <= 1e-6 * np.abs(np.where(finite, expected, 0)) + np.where(finite, slack, 0) + 1e-37).all()


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("shape", [(2,), (1, 30), (3, 2, 16), (5, 64), (2, 3, 514)], ids=str)
def test_equals_the_reference(activation: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(shape[-1])
    x = rng.normal(0, 5, shape).astype(np.float32)
    gate, up = np.split(x, 2, axis=-1)
    packed = run(activation, x)
    close(activation, packed, gated_activation(x, activation), gate, up)
    separate = run(activation, np.ascontiguousarray(gate), np.ascontiguousarray(up))
    np.testing.assert_array_equal(separate, packed)


@pytest.mark.parametrize("activation", list(Activation))
def test_special_values(activation: str) -> None:
    gate = np.repeat(np.array(SPECIAL, np.float32), 3)
    up = np.tile(np.array([1.0, -2.0, np.inf], np.float32), len(SPECIAL))
    with np.errstate(invalid="ignore", over="ignore"):
        close(activation, run(activation, gate, up), gated_activation(gate, activation, up), gate, up)


@pytest.mark.parametrize("shape", [(3, 0), (0, 6), (0,)], ids=str)
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    assert run("silu", np.zeros(shape, np.float32)).shape == (*shape[:-1], shape[-1] // 2)


@pytest.mark.parametrize("separate", [False, True])
def test_threads_do_not_change_bits(separate: bool) -> None:
    rng = np.random.default_rng(1)
    x, up = rng.standard_normal((2, 37, 2746), np.float32)
    single = run("gelu", x, up if separate else None)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(run("gelu", x, up if separate else None, threads), single)


@pytest.mark.parametrize("activation", list(Activation))
def test_scalar_kernels_give_the_same_bits(activation: str, tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np, onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        "options.register_custom_ops_library(sys.argv[1])\n"
        "session = ort.InferenceSession(sys.argv[2], options, providers=['CPUExecutionProvider'])\n"
        "np.save(sys.argv[4], session.run(None, {'X': np.load(sys.argv[3])})[0])\n"
    )
    x = np.random.default_rng(2).normal(0, 8, (3, 502)).astype(np.float32)
    (tmp_path / "model.onnx").write_bytes(gated_model(activation=activation))
    np.save(tmp_path / "x.npy", x)
    files = [str(tmp_path / name) for name in ("model.onnx", "x.npy", "y.npy")]
    child = subprocess.run(
        [sys.executable, "-c", script, str(library_path()), *files],
        env=os.environ | {"BITNET_ONNX_ISA": "scalar"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    np.testing.assert_array_equal(np.load(files[2]), run(activation, x))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"activation": "swish"}, "activation is 'swish'; known values are silu, relu2, gelu and gelu_tanh"),
        ({"activation": ""}, "activation is ''; known values are"),
        ({"activation": "silu\0x"}, "activation is 'silu"),
        ({}, "attribute activation is missing; it must be a string"),
        ({"activation": 1}, "attribute activation is missing; it must be a string"),
    ],
)
def test_attribute_is_checked(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match="the_node") as caught:
        open_model(gated_model(**attributes))
    assert f"GatedActivation 'the_node': {message}" in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (2, 5), ()], ids=str)
def test_x_must_hold_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(Exception, match="its last dimension must hold gate and up, an even number"):
        run("silu", np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 4)], ids=str)
def test_up_must_have_the_shape_of_the_gate(shape: tuple[int, ...]) -> None:
    with pytest.raises(Exception, match=r"up has shape .*; it must have the shape of X, \[2, 4\]"):
        run("silu", np.zeros((2, 4), np.float32), np.zeros(shape, np.float32))


def test_element_type() -> None:
    with pytest.raises(Exception, match="float16"):
        open_model(gated_model(x_type=TensorProto.FLOAT16, activation="silu"))
