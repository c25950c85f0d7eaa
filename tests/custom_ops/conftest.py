"""Tiny models of one operator node, and sessions that have the operator library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from packed_linears import random_linear

from bitnet_onnx.bitlinear import PackedLinear
from bitnet_onnx.custom_ops import library_path


@dataclass
class OneNode:
    """A model of one node, described so that a test can spoil any part of it."""

    op: str
    attributes: dict[str, Any]
    constants: dict[str, np.ndarray | None]
    x_type: int = TensorProto.FLOAT
    y_type: int = TensorProto.FLOAT
    not_constant: set[str] = field(default_factory=set)

    @classmethod
    def linear(cls, linear: PackedLinear, x_type: int = TensorProto.FLOAT) -> OneNode:
        a = linear.attributes
        attributes = {
            "in_features": a.in_features,
            "out_features": a.out_features,
            "bits": a.grid.bits,
            "zero_point": a.grid.zero_point,
            "group_size": a.grid.group_size,
            "activation_bits": a.activation_bits,
            "epsilon": a.epsilon,
        }
        constants = {
            "W": linear.weight,
            "scale": linear.scale,
            "norm_weight": linear.norm_weight,
            "bias": linear.bias,
        }
        return cls("BitLinear", attributes, constants, x_type, x_type)

    @classmethod
    def embedding(cls, table: PackedLinear) -> OneNode:
        node = cls.linear(table)
        for name in ("activation_bits", "epsilon"):
            del node.attributes[name]
        constants = {name: node.constants[name] for name in ("W", "scale")}
        return cls("BitEmbedding", node.attributes, constants, TensorProto.INT64)

    def model(self) -> bytes:
        names = [name if value is not None else "" for name, value in self.constants.items()]
        while names and not names[-1]:
            names.pop()
        node = helper.make_node(self.op, ["X", *names], ["Y"], name="the_node", domain="bitnet", **self.attributes)
        inputs = [helper.make_tensor_value_info("X", self.x_type, None)]
        initializers = []
        for name, value in self.constants.items():
            if value is None:
                continue
            if name in self.not_constant:
                element = helper.np_dtype_to_tensor_dtype(value.dtype)
                inputs.append(helper.make_tensor_value_info(name, element, value.shape))
            else:
                initializers.append(numpy_helper.from_array(value, name))
        outputs = [helper.make_tensor_value_info("Y", self.y_type, None)]
        graph = helper.make_graph([node], "one_node", inputs, outputs, initializers)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("bitnet", 1)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return model.SerializeToString()

    def session(self, threads: int = 1, registrations: int = 1) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        for _ in range(registrations):
            options.register_custom_ops_library(str(library_path()))
        return ort.InferenceSession(self.model(), options, providers=["CPUExecutionProvider"])

    def run(self, x: np.ndarray, threads: int = 1) -> np.ndarray:
        result: np.ndarray = self.session(threads).run(None, {"X": x})[0]
        return result


MakeLinear = Callable[..., PackedLinear]


@pytest.fixture
def make_linear() -> MakeLinear:
    return random_linear


@pytest.fixture
def one_node() -> type[OneNode]:
    return OneNode


@pytest.fixture(autouse=True)
def _needs_library(request: pytest.FixtureRequest) -> None:
    if "no_library" not in request.fixturenames and library_path() is None:
        pytest.skip("the operator library is not built: no C++17 compiler when bitnet-onnx was installed")


@pytest.fixture
def no_library() -> None:
    """Asked for by tests that run without the operator library."""
