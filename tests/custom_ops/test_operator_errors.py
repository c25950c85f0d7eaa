"""A model file is not trusted: whatever it claims, the answer is one clear line and never a crash."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from bitnet_onnx.custom_ops import library_path

ROWS, COLUMNS = 70, 130

BAD_ATTRIBUTES: list[tuple[dict[str, Any], str]] = [
    ({"in_features": 0}, "in_features is 0; it must be from 1"),
    ({"in_features": -5}, "in_features is -5"),
    ({"in_features": 1 << 40}, "in_features is 1099511627776"),
    ({"in_features": 5592406}, "in_features is 5592406; it must be below 2^31 / (128 * 3)"),
    ({"in_features": 65794, "bits": 8, "zero_point": 0}, "in_features is 65794; it must be below"),
    ({"in_features": 129 * 64}, "W has shape [3, 12, 128]; it must be [3, 516, 128]"),
    ({"out_features": 0}, "out_features is 0"),
    ({"out_features": -(1 << 63) + 1}, "out_features is -9223372036854775807"),
    ({"out_features": (1 << 63) - 1}, "out_features is 9223372036854775807"),
    ({"out_features": (1 << 31) - 1}, "W has shape [3, 12, 128]; it must be [67108864, 12, 128]"),
    ({"out_features": 96}, "scale has shape [70]; it must be [1] or [96]"),
    ({"bits": 0}, "bits is 0; it must be 2, 4, 6 or 8"),
    ({"bits": -2}, "bits is -2"),
    ({"bits": 3}, "bits is 3"),
    ({"bits": 10}, "bits is 10"),
    ({"bits": 4}, "W has shape [3, 12, 128]; it must be [3, 12, 256]"),
    ({"bits": 1 << 33}, "bits is 8589934592"),
    ({"bits": (1 << 32) + 2}, "bits is 4294967298"),
    ({"zero_point": 4}, "zero_point is 4; it must be from 0 to 3"),
    ({"zero_point": -1}, "zero_point is -1"),
    ({"group_size": 16}, "group_size is 16; it must be 0 or a positive multiple of 32"),
    ({"group_size": -32}, "group_size is -32"),
    ({"group_size": 32}, "scale has shape [70]; it must be [3, 5, 32]"),
    ({"activation_bits": 4}, "activation_bits is 4; it must be 0, 8 or 16"),
    ({"epsilon": -1.0}, "epsilon is -1"),
    ({"epsilon": float("nan")}, "epsilon is"),
    ({"epsilon": float("inf")}, "epsilon is inf"),
    ({"bits": 1.0}, "bits is a float attribute; it must be an int"),
    ({"epsilon": 1}, "epsilon is an int attribute; it must be a float"),
    ({"in_features": 130.0}, "in_features is a float attribute"),
]


def fails(run: Any, message: str) -> None:
    with pytest.raises(Exception) as caught:
        run()
    text = str(caught.value)
    assert message in text
    assert len(text.strip().splitlines()) == 1


CASES = [
    (op, change, message)
    for op in ("BitLinear", "BitEmbedding")
    for change, message in BAD_ATTRIBUTES
    if op == "BitLinear" or not {"activation_bits", "epsilon"} & set(change)
]


@pytest.mark.parametrize(("op", "change", "message"), CASES, ids=str)
def test_attributes(make_linear, one_node, op, change, message) -> None:
    linear = make_linear(ROWS, COLUMNS)
    node = one_node.linear(linear) if op == "BitLinear" else one_node.embedding(linear)
    node.attributes |= change
    fails(node.session, f"{op} 'the_node': {message}")


@pytest.mark.parametrize("name", ["in_features", "out_features"])
def test_missing_attribute(make_linear, one_node, name) -> None:
    node = one_node.linear(make_linear(ROWS, COLUMNS))
    del node.attributes[name]
    fails(node.session, f"BitLinear 'the_node': attribute {name} is missing")


def test_defaults_of_attributes(make_linear, one_node) -> None:
    node = one_node.linear(make_linear(ROWS, COLUMNS))
    x = np.random.default_rng(3).standard_normal((2, COLUMNS)).astype(np.float32)
    expected = node.run(x)
    for name in ("bits", "zero_point", "group_size", "activation_bits", "epsilon"):
        del node.attributes[name]
    np.testing.assert_array_equal(node.run(x), expected)


F = np.float32
BAD_CONSTANTS = [
    ("W", np.zeros((3, 11, 128), np.uint8), "W has shape [3, 11, 128]; it must be [3, 12, 128]"),
    ("W", np.zeros((1, 12, 128), np.uint8), "W has shape [1, 12, 128]"),
    ("W", np.zeros((2, 12, 256), np.uint8), "W has shape [2, 12, 256]"),
    ("W", np.zeros((1, 3, 12, 128), np.uint8), "W has shape [1, 3, 12, 128]"),
    ("W", np.zeros((3 * 12 * 128,), np.uint8), "W has shape [4608]"),
    ("W", np.zeros((0,), np.uint8), "W has shape [0]"),
    ("scale", np.ones((2,), F), "scale has shape [2]; it must be [1] or [70]"),
    ("scale", np.ones((), F), "scale has shape []"),
    ("scale", np.ones((70, 1), F), "scale has shape [70, 1]"),
    ("norm_weight", np.ones((129,), F), "norm_weight has shape [129]; it must be [130]"),
    ("norm_weight", np.ones((1, 130), F), "norm_weight has shape [1, 130]"),
    ("bias", np.ones((71,), F), "bias has shape [71]; it must be [70]"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_CONSTANTS, ids=lambda v: str(getattr(v, "shape", v)))
def test_constants(make_linear, one_node, name, value, message) -> None:
    node = one_node.linear(make_linear(ROWS, COLUMNS))
    node.constants[name] = value
    fails(node.session, f"BitLinear 'the_node': {message}")


@pytest.mark.parametrize("name", ["W", "scale", "norm_weight", "bias"])
def test_inputs_that_must_be_constant(make_linear, one_node, name) -> None:
    node = one_node.linear(make_linear(ROWS, COLUMNS, norm=True, bias=True))
    node.not_constant.add(name)
    fails(node.session, f"BitLinear 'the_node': {name} is not constant; it must be an initializer")


@pytest.mark.parametrize(("name", "dtype"), [("W", np.int8), ("scale", np.float64), ("bias", np.float16)])
def test_types_of_constants(make_linear, one_node, name, dtype) -> None:
    """The runtime itself refuses these, naming the tensor and the node."""
    node = one_node.linear(make_linear(ROWS, COLUMNS, bias=True))
    node.constants[name] = node.constants[name].astype(dtype)
    with pytest.raises(Exception, match=rf"{name}.*the_node"):
        node.session()


@pytest.mark.parametrize("element", [TensorProto.DOUBLE, TensorProto.INT32, TensorProto.BFLOAT16])
def test_type_of_x(make_linear, one_node, element) -> None:
    node = one_node.linear(make_linear(ROWS, COLUMNS), element)
    fails(node.session, "BitLinear 'the_node': X has element type")


@pytest.mark.parametrize("shape", [(), (129,), (2, 131), (130, 1), (0,), (3, 0)], ids=str)
def test_shape_of_x(make_linear, one_node, shape) -> None:
    session = one_node.linear(make_linear(ROWS, COLUMNS)).session()
    x = np.zeros(shape, np.float32)
    message = f"BitLinear 'the_node': X has shape {list(shape)}; its last dimension must be in_features, 130"
    fails(lambda: session.run(None, {"X": x}), message)


@pytest.mark.parametrize("spoiled", [-1, 70, 1 << 40, -(1 << 63)])
def test_ids_out_of_range(make_linear, one_node, spoiled) -> None:
    session = one_node.embedding(make_linear(ROWS, COLUMNS)).session()
    ids = np.array([[0, 69], [spoiled, 1]], np.int64)
    message = f"BitEmbedding 'the_node': ids holds {spoiled}; it must be from 0 to 69"
    fails(lambda: session.run(None, {"X": ids}), message)
    assert session.run(None, {"X": ids[:1]})[0].shape == (1, 2, COLUMNS)


@pytest.mark.parametrize("drop", ["W", "scale"])
def test_missing_inputs(make_linear, one_node, drop) -> None:
    node = one_node.linear(make_linear(ROWS, COLUMNS, bias=True))
    node.constants[drop] = None
    with pytest.raises(Exception, match="the_node"):
        node.session()


def test_constant_at_an_odd_address(make_linear, one_node, tmp_path) -> None:
    """External data may start at any byte of its file: floats that nobody aligned are refused, not misread."""
    linear = make_linear(ROWS, COLUMNS)
    model = onnx.load_from_string(one_node.linear(linear).model())
    (tensor,) = (item for item in model.graph.initializer if item.name == "scale")
    (tmp_path / "data").write_bytes(b"??" + tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "data", offset=2, length=len(tensor.raw_data))
    tensor.ClearField("raw_data")
    onnx.save(model, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    with pytest.raises(Exception, match="scale lies at an address that is not a multiple of 4"):
        ort.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
