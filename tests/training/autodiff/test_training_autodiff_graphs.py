"""Whole graphs: what is differentiated, what is not, and what is computed again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from gradient_checks import check_gradients, differentiated, graph_of, run, stack
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.training.autodiff import differentiate

RNG = np.random.default_rng(17)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def floats(*shape: int) -> np.ndarray:
    return np.asarray(RNG.normal(size=shape))


def single(*shape: int) -> np.ndarray:
    return floats(*shape).astype(np.float32)


SUM = node("ReduceSum", "y", "loss", keepdims=0)


def test_parameter_used_twice() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Tanh", "h", "t"), node("MatMul", "t w", "y")]
    check_gradients(nodes, {"x": floats(3, 3), "w": floats(3, 3)}, ["y"], ["w"])


def test_parameters_that_the_loss_does_not_depend_on() -> None:
    arrays = {"x": single(2, 3), "w": single(3), "behind": single(4, 2), "apart": single(2)}
    nodes = [node("Mul", "x w", "y"), SUM, node("Exp", "apart", "other")]
    model = graph_of(nodes, arrays, ["loss", "other"])
    found = run(differentiated(model, ["w", "behind", "apart"]), arrays)
    assert list(found) == ["loss", "other", "gradient.w", "gradient.behind", "gradient.apart"]
    np.testing.assert_array_equal(found["gradient.behind"], np.zeros((4, 2)))
    np.testing.assert_array_equal(found["gradient.apart"], np.zeros(2))
    np.testing.assert_allclose(found["gradient.w"], arrays["x"].sum(0), rtol=1e-6)


def test_one_gradient_of_two_parameters() -> None:
    """Each has an output of its own."""
    arrays = {"a": single(2), "b": single(2), "g": single(2)}
    nodes = [node("Add", "a b", "s"), node("Mul", "s g", "y"), SUM]
    found = run(differentiated(graph_of(nodes, arrays, ["loss"]), ["a", "b"]), arrays)
    np.testing.assert_array_equal(found["gradient.a"], arrays["g"])
    np.testing.assert_array_equal(found["gradient.b"], arrays["g"])


def test_the_loss_is_a_parameter_or_has_one_element() -> None:
    arrays = {"x": single(1, 1)}
    nodes = [node("Mul", "x x", "loss")]
    found = run(differentiated(graph_of(nodes, arrays, ["loss"]), ["x"]), arrays)
    np.testing.assert_allclose(found["gradient.x"], 2 * arrays["x"])


def test_stop_gradient_lets_nothing_pass() -> None:
    """Nor is anything asked of what stands before it: Round has no rule."""
    stop = helper.make_node("StopGradient", ["d"], ["s"], domain="bitnet.training")
    nodes = [
        node("Round", "x", "q"),
        node("Sub", "q x", "d"),
        stop,
        node("Add", "x s", "h"),
        node("Mul", "h h", "y"),
        SUM,
    ]
    arrays = {"x": np.array([0.4, 1.7, -2.2], np.float32)}
    result = differentiated(graph_of(nodes, arrays, ["loss"]), ["x"])
    assert {each.domain for each in result.graph.node} == {""}
    assert [each.domain for each in result.opset_import] == [""]
    np.testing.assert_allclose(run(result, arrays)["gradient.x"], 2 * np.round(arrays["x"]), rtol=1e-6)


def test_a_loss_that_only_stops_gives_zeros() -> None:
    stop = helper.make_node("StopGradient", ["x"], ["y"], domain="bitnet.training")
    arrays = {"x": single(3)}
    found = run(differentiated(graph_of([stop, SUM], arrays, ["loss"]), ["x"]), arrays)
    np.testing.assert_array_equal(found["gradient.x"], np.zeros(3))


def test_without_parameters_it_is_the_forward_pass_for_any_runtime() -> None:
    loss = node("SoftmaxCrossEntropyLoss", "x labels", "loss logs", reduction="sum", ignore_index=-100)
    arrays = {"x": single(3, 5), "labels": np.array([1, -100, 4])}
    result = differentiated(graph_of([loss], arrays, ["loss", "logs"]), [])
    assert "SoftmaxCrossEntropyLoss" not in {each.op_type for each in result.graph.node}
    found = run(result, arrays)
    logs = arrays["x"] - np.log(np.exp(arrays["x"]).sum(1, keepdims=True))
    np.testing.assert_allclose(found["logs"], logs, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], -(logs[0, 1] + logs[2, 4]), rtol=1e-5)


def test_the_model_is_left_as_it_is() -> None:
    arrays = {"x": single(3, 5), "labels": np.array([1, 0, 4])}
    model = ir.from_proto(graph_of([node("SoftmaxCrossEntropyLoss", "x labels", "loss")], arrays, ["loss"]))
    before = ir.to_proto(model).SerializeToString()
    differentiate(model, "loss", ["x"])
    assert ir.to_proto(model).SerializeToString() == before


def test_an_initializer_can_be_a_parameter() -> None:
    arrays = {"x": single(2, 3)}
    model = graph_of([node("Mul", "x w", "y"), SUM], arrays, ["loss"], constants={"w": single(3)})
    found = run(differentiated(model, ["w"]), arrays)
    np.testing.assert_allclose(found["gradient.w"], arrays["x"].sum(0), rtol=1e-6)


def test_functions_of_the_model_are_read() -> None:
    square = helper.make_function(
        "own", "Square", ["a"], ["b"], [node("Mul", "a a", "b")], [helper.make_opsetid("", 20)]
    )
    call = helper.make_node("Square", ["x"], ["y"], domain="own")
    arrays = {"x": single(3)}
    model = graph_of([call, SUM], arrays, ["loss"])
    model.functions.append(square)
    model.opset_import.append(helper.make_opsetid("own", 1))
    np.testing.assert_allclose(run(differentiated(model, ["x"]), arrays)["gradient.x"], 2 * arrays["x"], rtol=1e-6)


def test_many_rows_of_one_token_add_up_on_several_threads() -> None:
    ids = np.full((64, 64), 3)
    arrays = {"w": single(5, 32), "ids": ids}
    nodes = [node("Gather", "w ids", "y"), SUM]
    found = run(differentiated(graph_of(nodes, arrays, ["loss"], shapes={"ids": ("b", "t")}), ["w"]), arrays, threads=4)
    expected = np.zeros((5, 32), np.float32)
    expected[3] = ids.size
    np.testing.assert_array_equal(found["gradient.w"], expected)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Round", "x", "y", name="r")], "node 'r' (Round) cannot be differentiated: the operator has no rule"),
        (
            [helper.make_node("Fused", ["x"], ["z"], domain="com.own", name="f"), node("Reshape", "z p", "y")],
            "node 'f' (com.own::Fused) cannot",
        ),
        (
            [node("Max", "x x x", "y", name="m")],
            "node 'm' (Max) cannot be differentiated: it has more than two operands",
        ),
        (
            [node("Pow", "x x", "y", name="p")],
            "node 'p' (Pow) cannot be differentiated: its exponent depends on a parameter",
        ),
        (
            [node("Clip", "x s", "y", name="c"), node("ReduceSum", "x", "s", keepdims=0)][::-1],
            "its limits depend on a parameter",
        ),
        (
            [node("Pad", "x p", "y", name="d", mode="edge")],
            "node 'd' (Pad) cannot be differentiated: its mode is 'edge'",
        ),
        ([node("MatMul", "x x", "y", name="v")], "node 'v' (MatMul) cannot be differentiated: 'x' is a vector"),
    ],
)
def test_what_cannot_be_differentiated_is_named(nodes: list[onnx.NodeProto], message: str) -> None:
    model = graph_of([*nodes, SUM], {"x": single(4)}, ["loss"], constants={"p": np.array([1, 1])})
    model.opset_import.append(helper.make_opsetid("com.own", 1))
    with pytest.raises(UnsupportedError) as caught:
        differentiate(ir.from_proto(model), "loss", ["x"])
    assert message in str(caught.value)
    # The same off the gradient path is no error.
    differentiate(ir.from_proto(model), "loss", [])


def test_wrong_names_are_refused() -> None:
    arrays = {"x": single(2), "i": np.array([1])}
    model = ir.from_proto(graph_of([node("Mul", "x x", "y"), SUM], arrays, ["loss"]))
    for arguments, message in (
        (("lost", ["x"], ()), "no output of that name"),
        (("loss", ["z"], ()), "no input of that name"),
        (("loss", ["i"], ()), "not of floats"),
        (("loss", ["x"], ("h",)), "no value of that name"),
        (("loss", ["x"], ("loss", "y")), "does not depend on the first"),
    ):
        loss, parameters, recompute = arguments
        with pytest.raises(InputError, match=message):
            differentiate(model, loss, parameters, recompute=recompute)


def test_an_old_opset_is_refused() -> None:
    model = graph_of([node("Mul", "x x", "y"), SUM], {"x": single(2)}, ["loss"], opset=16)
    with pytest.raises(UnsupportedError, match="opset 16: at least 17"):
        differentiate(ir.from_proto(model), "loss", ["x"])


def test_recomputed_gradients_are_equal() -> None:
    model, inputs, parameters, boundaries = stack(3, 8, batch=2, length=5)
    kept = run(differentiated(model, parameters), inputs)
    again = run(differentiated(model, parameters, boundaries), inputs)
    assert kept.keys() == again.keys()
    assert np.abs(kept["gradient.w0"]).max() > 0
    for name, gradient in kept.items():
        np.testing.assert_array_equal(again[name], gradient)


def test_recomputation_reads_nothing_of_the_first_pass_but_boundaries() -> None:
    model, _, parameters, boundaries = stack(3, 8, batch=2, length=5)
    result = differentiated(model, parameters, boundaries)
    inside = {output for each in model.graph.node for output in each.output} - set(boundaries) - {"y", "loss"}
    names = [each.name for each in result.graph.node]
    first = min(index for index, name in enumerate(names) if name.startswith("backward/"))
    assert first < min(index for index, name in enumerate(names) if name.startswith("again/"))
    read = {name for each in result.graph.node[first:] for name in each.input}
    assert not read & inside


UNARY = ["Tanh", "Sigmoid", "Exp", "Neg", "Softmax", "Identity"]


@given(st.data())
@settings(max_examples=25)
def test_chains_of_operators(data: st.DataObject) -> None:
    """Values that are read any number of times, by operators in any order."""
    values = ["x", "z"]
    nodes = []
    for index in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from([*UNARY, "Add", "Sub", "Mul", "mean"]))
        a, b = data.draw(st.sampled_from(values)), data.draw(st.sampled_from(values))
        if kind == "mean":
            nodes.append(node("ReduceMean", f"{a} last", f"m{index}"))
            nodes.append(node("Sub", f"{a} m{index}", f"v{index}"))
        else:
            nodes.append(node(kind, a if kind in UNARY else f"{a} {b}", f"v{index}"))
        values.append(f"v{index}")
    arrays = {"x": np.linspace(-0.9, 0.8, 6).reshape(2, 3), "z": np.linspace(0.5, -0.3, 3)}
    nodes.append(node("Tanh", values[-1], "y"))
    last = {"last": np.array([-1])}
    check_gradients(nodes, arrays, ["y"], ["x", "z"], constants=last, shapes=({}, {"x": ("b", 3)}))
