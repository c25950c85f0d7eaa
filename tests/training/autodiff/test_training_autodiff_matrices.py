"""Rules of matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from gradient_checks import check_gradients, differentiated, graph_of
from onnx import helper

RNG = np.random.default_rng(13)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def floats(*shape: int) -> np.ndarray:
    return np.asarray(RNG.normal(size=shape))


PRODUCTS = [
    ((3, 4), (4, 2)),
    ((2, 3, 4), (4, 2)),
    ((2, 2, 3, 4), (4, 2)),
    ((2, 3, 4), (2, 4, 2)),
    ((2, 3, 4), (1, 4, 2)),
    ((3, 4), (2, 4, 2)),
    ((2, 2, 3, 4), (2, 1, 4, 2)),
    ((2, 1, 3, 4), (2, 2, 4, 2)),
    ((2, 3, 2, 4), (3, 4, 2)),
]


@pytest.mark.parametrize(("a", "b"), PRODUCTS)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    lengths = {2: "n2", 3: "n3"}
    mixed = {
        "a": (*(lengths.get(d, d) for d in a[:-1]), a[-1]),
        "b": (*(lengths.get(d, d) for d in b[:-2]), *b[-2:]),
    }
    loose = {"a": (None,) * len(a), "b": (None,) * len(b)}
    arrays = {"a": floats(*a), "b": floats(*b)}
    check_gradients([node("MatMul", "a b", "y")], arrays, ["y"], ["a", "b"], shapes=({}, mixed, loose))


@pytest.mark.parametrize(("a", "b"), PRODUCTS)
@pytest.mark.parametrize("swapped", ["a", "b", "a b"])
def test_matmul_of_transposes(a: tuple[int, ...], b: tuple[int, ...], swapped: str) -> None:
    shapes = {"a": a, "b": b}
    nodes, names = [], {"a": "a", "b": "b"}
    for name in swapped.split():
        count = len(shapes[name])
        shapes[name] = (*shapes[name][:-2], shapes[name][-1], shapes[name][-2])
        order = [*range(count - 2), count - 1, count - 2]
        nodes.append(node("Transpose", name, f"{name}t", perm=order))
        names[name] = f"{name}t"
    arrays = {name: floats(*shape) for name, shape in shapes.items()}
    mixed = {name: (*(f"n{d}" if d > 1 else d for d in shape[:-2]), *shape[-2:]) for name, shape in shapes.items()}
    nodes.append(node("MatMul", f"{names['a']} {names['b']}", "y"))
    check_gradients(nodes, arrays, ["y"], ["a", "b"], shapes=({}, mixed))


def test_matmul_of_one_value() -> None:
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t", "y")]
    check_gradients(nodes, {"x": floats(2, 3, 4)}, ["y"], ["x"], shapes=({}, {"x": ("b", "t", 4)}))


@pytest.mark.parametrize("swap_a", [0, 1])
@pytest.mark.parametrize("swap_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (2,), (3, 1), (3, 2), ()])
def test_gemm(swap_a: int, swap_b: int, bias: tuple[int, ...] | None) -> None:
    arrays = {"a": floats(*((4, 3) if swap_a else (3, 4))), "b": floats(*((2, 4) if swap_b else (4, 2)))}
    if bias is not None:
        arrays["c"] = floats(*bias)
    for attributes in ({}, {"alpha": 0.5, "beta": 2.0}):
        product = node("Gemm", " ".join(arrays), "y", transA=swap_a, transB=swap_b, **attributes)
        check_gradients([product], arrays, ["y"], list(arrays))


def test_attention() -> None:
    """Softmax between two products: the sum along a row is taken from the output."""
    nodes = [
        node("Transpose", "k", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "q kt", "s"),
        node("Softmax", "s", "p"),
        node("MatMul", "p v", "y"),
    ]
    arrays = {name: floats(2, 2, 3, 4) for name in ("q", "k", "v")}
    symbols = dict.fromkeys(arrays, ("b", 2, "t", 4))
    check_gradients(nodes, arrays, ["y"], list(arrays), shapes=({}, symbols))
    check_gradients(nodes, arrays, ["y", "p"], list(arrays), shapes=({}, symbols))
    weighted = [*nodes, node("ReduceSum", "y", "loss", keepdims=0)]
    narrow = {name: array.astype(np.float32) for name, array in arrays.items()}
    model = differentiated(graph_of(weighted, narrow, ["loss"], shapes=symbols), list(arrays))
    sums = [each for each in model.graph.node if each.op_type == "ReduceSum" and each.name.startswith("backward")]
    products = {output: each for each in model.graph.node for output in each.output}
    assert [products[each.input[0]].input[1] for each in sums] == ["y"]


def test_a_weight_has_one_flat_product() -> None:
    """Neither a product for each sequence and a sum, nor a transpose of anything."""
    arrays = {"x": floats(2, 3, 4).astype(np.float32), "w": floats(5, 4).astype(np.float32)}
    nodes = [
        node("Transpose", "w", "t", perm=[1, 0]),
        node("MatMul", "x t", "y"),
        node("ReduceSum", "y", "loss", keepdims=0),
    ]
    model = differentiated(graph_of(nodes, arrays, ["loss"], shapes={"x": ("b", "t", 4)}), ["x", "w"])
    kinds = [each.op_type for each in model.graph.node]
    assert kinds.count("Transpose") == 1
    assert kinds.count("Gemm") == 2
    assert kinds.count("ReduceSum") == 1
