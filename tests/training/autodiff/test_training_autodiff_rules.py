"""Every rule against finite differences, and that ONNX Runtime has kernels of what it writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from gradient_checks import check_gradients, differentiated, graph_of, run
from onnx import helper

RNG = np.random.default_rng(7)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def floats(*shape: int) -> np.ndarray:
    """Away from the kinks of Abs, Relu and Clip, and from ties."""
    magnitude = RNG.uniform(0.2, 1.7, size=shape)
    return np.asarray(np.where(RNG.random(shape) < 0.5, -magnitude, magnitude))


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    "op_type", ["Abs", "Neg", "Exp", "Sigmoid", "Tanh", "Relu", "Erf", "Sin", "Cos", "Softplus", "Identity"]
)
def test_unary(op_type: str) -> None:
    check_gradients([node(op_type, "x", "y")], {"x": floats(2, 3)}, ["y"], ["x"])


@pytest.mark.parametrize("op_type", ["Sqrt", "Reciprocal", "Log"])
def test_unary_of_positive(op_type: str) -> None:
    check_gradients([node(op_type, "x", "y")], {"x": abs(floats(2, 3))}, ["y"], ["x"])


@pytest.mark.parametrize(
    "op_type", ["Exp", "Sqrt", "Reciprocal", "Log", "Identity", "Neg", "Sigmoid", "Add", "Sub", "Mul", "Div"]
)
def test_below_a_mean(op_type: str) -> None:
    """The gradient that comes from a mean is not spread out before it is needed."""
    inputs = "x z" if op_type in {"Add", "Sub", "Mul", "Div"} else "x"
    nodes = [node(op_type, inputs, "h"), node("ReduceMean", "h", "y", keepdims=0), node("Tanh", "h", "t")]
    arrays = {"x": abs(floats(2, 3)), "z": abs(floats(2, 3))}
    for outputs in (["y"], ["y", "t"]):
        check_gradients(nodes, arrays, outputs, ["x"])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    check_gradients([node("Gelu", "x", "y", approximate=approximate)], {"x": floats(3, 4)}, ["y"], ["x"])


def test_swish() -> None:
    check_gradients([node("Sigmoid", "x", "s"), node("Mul", "x s", "y")], {"x": floats(3, 4)}, ["y"], ["x"])
    check_gradients([node("Sigmoid", "x", "s"), node("Mul", "s x", "y")], {"x": floats(3, 4)}, ["y", "s"], ["x"])


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, 0.5, -1.5])
def test_pow(power: float) -> None:
    check_gradients([node("Pow", "x p", "y")], {"x": abs(floats(2, 3))}, ["y"], ["x"], constants={"p": np.array(power)})


def test_clip() -> None:
    limits = {"low": np.array(-1.0), "high": np.array(0.9)}
    x = np.array([[-1.3, -0.7, 0.1], [0.8, 1.1, 1.6]])
    check_gradients([node("Clip", "x low high", "y")], {"x": x}, ["y"], ["x"], constants=limits)
    check_gradients([helper.make_node("Clip", ["x", "", "high"], ["y"])], {"x": x}, ["y"], ["x"], constants=limits)


def test_cast_passes_floats_and_stops_at_integers() -> None:
    nodes = [
        node("Cast", "x", "i", to=7),
        node("Cast", "i", "f", to=1),
        node("Mul", "f x", "y"),
        node("Cast", "y", "d", to=11),
    ]
    nodes.append(node("ReduceSum", "d", "loss", keepdims=0))
    x = np.array([1.3, -2.4, 5.5], np.float32)
    found = run(differentiated(graph_of(nodes, {"x": x}, ["loss"]), ["x"]), {"x": x})
    np.testing.assert_array_equal(found["gradient.x"], np.array([1, -2, 5], np.float32))


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3), (2, 3)),
        ((2, 3), (3,)),
        ((3,), (2, 3)),
        ((2, 1), (2, 3)),
        ((2, 1, 3), (4, 1)),
        ((), (2, 3)),
        ((1,), (2, 3)),
    ],
)
def test_broadcasting(op_type: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Also where only run time knows which axes are repeated."""
    open_shapes = {"a": (None,) * len(a), "b": (None,) * len(b)}
    symbols = {"a": tuple(f"n{d}" if d > 1 else d for d in a), "b": tuple(f"n{d}" if d > 1 else d for d in b)}
    nodes = [node(op_type, "a b", "y")]
    check_gradients(nodes, {"a": floats(*a), "b": floats(*b)}, ["y"], ["a", "b"], shapes=({}, symbols, open_shapes))


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Div", "Sub"])
def test_one_value_twice(op_type: str) -> None:
    check_gradients([node(op_type, "x x", "y")], {"x": floats(2, 3)}, ["y"], ["x"])


def test_sum_of_three() -> None:
    nodes = [node("Sum", "a b c", "y")]
    check_gradients(nodes, {"a": floats(2, 3), "b": floats(3), "c": floats(2, 1)}, ["y"], ["a", "b", "c"])


def test_where() -> None:
    arrays = {"c": np.array([[True], [False]]), "a": floats(2, 3), "b": floats(3)}
    check_gradients([node("Where", "c a b", "y")], arrays, ["y"], ["a", "b"])


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("axes", [(-1,), (0, 2), (1,), (0, 1, 2), None])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(op_type: str, axes: tuple[int, ...] | None, keepdims: int) -> None:
    constants = {} if axes is None else {"axes": ints(*axes)}
    nodes = [node("Exp", "x", "h"), node(op_type, "h" if axes is None else "h axes", "y", keepdims=keepdims)]
    check_gradients(
        nodes,
        {"x": floats(2, 3, 4)},
        ["y"],
        ["x"],
        constants=constants,
        shapes=({}, {"x": ("b", "t", 4)}, {"x": (None, None, None)}),
    )


def test_mean_over_axes_in_an_attribute() -> None:
    nodes = [node("ReduceMean", "x", "y", axes=[-1], keepdims=0)]
    x = floats(2, 4).astype(np.float32)
    nodes += [node("ReduceSum", "y", "loss", keepdims=0)]
    found = run(differentiated(graph_of(nodes, {"x": x}, ["loss"], opset=17), ["x"]), {"x": x})
    np.testing.assert_array_equal(found["gradient.x"], np.full((2, 4), 0.25, np.float32))


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_softmax(op_type: str, axis: int) -> None:
    check_gradients([node(op_type, "x", "y", axis=axis)], {"x": floats(2, 3, 4)}, ["y"], ["x"])


@pytest.mark.parametrize("opset", [17, 20])
def test_layer_normalization(opset: int) -> None:
    arrays = {"x": floats(2, 3, 4), "scale": floats(4), "bias": floats(4)}
    norm = node("LayerNormalization", "x scale bias", "y", epsilon=1e-3)
    check_gradients([norm], arrays, ["y"], list(arrays), shapes=({}, {"x": ("b", "t", 4)}), opset=opset)
    arrays = {"x": floats(2, 3, 4), "scale": floats(3, 4)}
    norm = node("LayerNormalization", "x scale", "y", axis=1)
    check_gradients([norm], arrays, ["y"], list(arrays), opset=opset)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("ignored", [None, -100, 2])
@pytest.mark.parametrize("shape", [(5, 4), (2, 4, 3)])
def test_cross_entropy(reduction: str, ignored: int | None, shape: tuple[int, ...]) -> None:
    samples = (shape[0], *shape[2:])
    labels = RNG.integers(0, shape[1], samples)
    if ignored is not None:
        labels.flat[0] = ignored
    extra = {} if ignored is None else {"ignore_index": ignored}
    loss = node("SoftmaxCrossEntropyLoss", "x labels", "y logs", reduction=reduction, **extra)
    for outputs in (["y"], ["y", "logs"]):
        check_gradients([loss], {"x": floats(*shape), "labels": labels}, outputs, ["x"])
    alone = node("SoftmaxCrossEntropyLoss", "x labels", "y", reduction=reduction, **extra)
    check_gradients([alone], {"x": floats(*shape), "labels": labels}, ["y"], ["x"])


def test_cross_entropy_with_class_weights() -> None:
    loss = node("SoftmaxCrossEntropyLoss", "x labels w", "y", reduction="mean", ignore_index=1)
    arrays = {"x": floats(4, 3), "labels": ints(0, 1, 2, 2)}
    check_gradients([loss], arrays, ["y"], ["x"], constants={"w": np.array([0.5, 1.0, 2.0])})
