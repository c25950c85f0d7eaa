"""Versions of the operators: what the library runs, and what it leaves to the function bodies."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from bitnet_onnx.bitlinear import bitlinear
from bitnet_onnx.custom_ops import library_facts, library_path, sdk_files
from bitnet_onnx.package_format import OLDEST_OPERATOR_VERSION, OPERATOR_VERSION

PACKAGE = Path(__file__).parents[2] / "model_zoo" / "packages" / "bitnet-tiny"


def test_library_header_and_python_have_the_same_versions() -> None:
    path = library_path()
    assert path is not None
    facts = library_facts(path)
    assert (facts.oldest_operator_version, facts.operator_version) == (OLDEST_OPERATOR_VERSION, OPERATOR_VERSION)
    header = next(file for file in sdk_files() if file.suffix == ".h").read_text("utf-8")
    values = dict(re.findall(r"^#define (BITNET_OPS_\w+) (\S+)$", header, re.MULTILINE))
    assert values["BITNET_OPS_OPERATOR_VERSION"] == str(OPERATOR_VERSION)
    assert values["BITNET_OPS_OLDEST_OPERATOR_VERSION"] == str(OLDEST_OPERATOR_VERSION)
    assert values["BITNET_OPS_VERSION"] == f'"{facts.version}"'


@pytest.mark.parametrize("version", [0, -1, OPERATOR_VERSION + 1, 2**62])
def test_a_node_of_another_version_is_refused(make_linear, one_node, version: int) -> None:
    node = one_node.linear(make_linear(8, 64))
    node.attributes["operator_version"] = version
    other = "a newer" if version > OPERATOR_VERSION else "an older"
    message = (
        rf"BitLinear 'the_node': operator_version is {version}, and bitnet_ops \S+ runs version {OPERATOR_VERSION}: "
        rf"register the library of {other} bitnet-onnx, or none, for the model's function bodies"
    )
    with pytest.raises(Exception, match=message):
        node.session()


def test_a_node_may_name_the_version_that_is_run(make_linear, one_node) -> None:
    linear = make_linear(8, 64)
    node = one_node.linear(linear)
    node.attributes["operator_version"] = OPERATOR_VERSION
    x = np.random.default_rng(3).standard_normal((2, 64)).astype(np.float32)
    np.testing.assert_array_equal(node.run(x), bitlinear(x, linear))


def logits(model: onnx.ModelProto, *, library: bool) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(PACKAGE))
    if library:
        options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ids = np.array([[5, 6, 7]], np.int64)
    past = {i.name: np.zeros((1, 2, 0, 64), np.float32) for i in session.get_inputs() if i.name.startswith("past")}
    result: np.ndarray = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids), **past})[0]
    return result


@pytest.fixture
def model() -> onnx.ModelProto:
    return onnx.load(PACKAGE / "model.onnx", load_external_data=False)


def test_a_later_model_runs_on_its_bodies_or_is_refused(model: onnx.ModelProto) -> None:
    """What a future version does with this library: nodes that need it say so."""
    bodies = logits(model, library=False)
    for entry in model.opset_import:
        if entry.domain == "bitnet":
            entry.version = 2
    for node in model.graph.node:
        if node.domain == "bitnet":
            node.attribute.append(helper.make_attribute("operator_version", 2))
    np.testing.assert_array_equal(logits(model, library=False), bodies)
    with pytest.raises(
        Exception, match=r"operator_version is 2, and bitnet_ops .* runs version 1: register the library"
    ):
        logits(model, library=True)


@pytest.mark.parametrize("operator", ["BitEmbedding", "BitLinear", "GatedActivation", "GroupQueryAttention"])
def test_every_operator_asks(model: onnx.ModelProto, operator: str) -> None:
    node = next(node for node in model.graph.node if node.op_type == operator)
    node.attribute.append(helper.make_attribute("operator_version", 2))
    with pytest.raises(Exception, match=rf"{operator} '{node.name}': operator_version is 2"):
        logits(model, library=True)


def test_the_runtime_does_not_compare_versions_of_a_domain(model: onnx.ModelProto) -> None:
    """Why nodes carry their version: ONNX Runtime gives a kernel of version 1 to a model that imports version 2."""
    kernels = logits(model, library=True)
    for entry in model.opset_import:
        if entry.domain == "bitnet":
            entry.version = 2
    np.testing.assert_array_equal(logits(model, library=True), kernels)


class ApiBase(ctypes.Structure):
    """OrtApiBase."""

    GET = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    _fields_ = (("GetApi", GET), ("GetVersionString", ctypes.c_void_p))


@pytest.mark.parametrize(
    ("known", "message"),
    [(1, "need ONNX Runtime 1.21 or later"), (21, "options is NULL; give it the session options")],
    ids=["an old runtime", "no options"],
)
def test_what_registration_refuses(known: int, message: str) -> None:
    messages: list[str] = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def create_status(code: int, text: bytes) -> int:
        messages.append(text.decode())
        return 1

    # Of the table of functions only the first is called.
    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))
    base = ApiBase(ApiBase.GET(lambda version: ctypes.addressof(table) if version == known else 0), None)
    library = ctypes.CDLL(str(library_path()))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    assert library.RegisterCustomOps(None, ctypes.byref(base)) == 1
    (said,) = messages
    assert message in said
