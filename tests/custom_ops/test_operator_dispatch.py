"""One file for both worlds: function bodies chosen by overload without the library, kernels with it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from bitnet_onnx.bitlinear import bitlinear
from bitnet_onnx.custom_ops import library_path

LEVELS = [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]


def body(overload: str, columns: int, value: float) -> onnx.FunctionProto:
    """A body that is recognizably not the operator: a constant of the right width."""
    constant = helper.make_tensor("c", TensorProto.FLOAT, [columns], [value] * columns)
    axis = helper.make_tensor("a", TensorProto.INT64, [1], [-1])
    zero = helper.make_tensor("z", TensorProto.FLOAT, [], [0.0])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("Constant", [], ["axis"], value=axis),
        helper.make_node("Constant", [], ["zero"], value=zero),
        helper.make_node("ReduceSum", ["X", "axis"], ["sum"]),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "c"], ["Y"]),
    ]
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_function("bitnet", "BitLinear", ["X", "W", "scale"], ["Y"], nodes, opsets, overload=overload)


@pytest.fixture
def chain(make_linear, one_node):
    """Two BitLinear nodes one after the other, each with its own overload."""
    first, second = make_linear(24, 40), make_linear(7, 24, bits=4)
    graph: onnx.GraphProto | None = None
    for index, linear in enumerate((first, second)):
        part = onnx.load_from_string(one_node.linear(linear).model()).graph
        part.node[0].name = f"node{index}"
        part.node[0].overload = f"variant{index}"
        for tensor in part.initializer:
            tensor.name += str(index)
        part.node[0].input[:] = ["H" if index else "X", f"W{index}", f"scale{index}"]
        if graph is None:
            part.node[0].output[:] = ["H"]
            graph = part
        else:
            graph.node.extend(part.node)
            graph.initializer.extend(part.initializer)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("bitnet", 1)]
    functions = [body("variant0", 24, 3.0), body("variant1", 7, 5.0)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    return model.SerializeToString(), first, second


@pytest.mark.parametrize("level", LEVELS, ids=str)
@pytest.mark.parametrize("with_library", [True, False])
def test_overloads(chain, level, with_library) -> None:
    model, first, second = chain
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    if with_library:
        options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(11).standard_normal((3, 40)).astype(np.float32)
    expected = bitlinear(bitlinear(x, first), second) if with_library else np.full((3, 7), 5, np.float32)
    np.testing.assert_array_equal(session.run(None, {"X": x})[0], expected)
