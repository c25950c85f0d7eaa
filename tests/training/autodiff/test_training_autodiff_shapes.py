"""Rules of operators that move elements or look them up."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from gradient_checks import check_gradients
from onnx import helper

RNG = np.random.default_rng(11)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def floats(*shape: int) -> np.ndarray:
    return np.asarray(RNG.normal(size=shape))


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


OPEN = ({}, {"x": ("b", "t", 4)}, {"x": (None, None, None)})


@pytest.mark.parametrize("target", [(-1, 4), (6, 4), (0, -1), (0, 0, 2, 2), (2, 12), (-1,), (0, 2, -1, 1)])
def test_reshape(target: tuple[int, ...]) -> None:
    x = floats(2, 3, 4)
    if target == (0, 2, -1, 1):
        x = floats(2, 4, 4)
    check_gradients([node("Reshape", "x s", "y")], {"x": x}, ["y"], ["x"], constants={"s": ints(*target)}, shapes=OPEN)


def test_reshape_by_pieces_of_shapes() -> None:
    nodes = [
        node("Shape", "x", "s", start=0, end=2),
        node("Concat", "s rest", "target", axis=0),
        node("Reshape", "x flat", "rows"),
        node("Exp", "rows", "e"),
        node("Reshape", "e target", "y"),
    ]
    constants = {"rest": ints(2, 2), "flat": ints(-1, 4)}
    check_gradients(nodes, {"x": floats(2, 3, 4)}, ["y"], ["x"], constants=constants, shapes=OPEN)


def test_squeeze_unsqueeze_flatten() -> None:
    nodes = [
        node("Unsqueeze", "x a", "u"),
        node("Exp", "u", "e"),
        node("Squeeze", "e b", "s"),
        node("Flatten", "s", "y"),
    ]
    check_gradients(nodes, {"x": floats(2, 3)}, ["y"], ["x"], constants={"a": ints(0, -1), "b": ints(0)})


def test_transpose() -> None:
    for attributes in ({"perm": [2, 0, 1]}, {}):
        check_gradients([node("Transpose", "x", "y", **attributes)], {"x": floats(2, 3, 4)}, ["y"], ["x"], shapes=OPEN)


@pytest.mark.parametrize("target", [(2, 3, 4), (3, 4), (2, 1, 4)])
def test_expand(target: tuple[int, ...]) -> None:
    for x in (floats(1, 4), floats(3, 1)) if target != (2, 1, 4) else (floats(1, 4),):
        symbols = ({}, {"x": (None, None)})
        check_gradients(
            [node("Expand", "x s", "y")], {"x": x}, ["y"], ["x"], constants={"s": ints(*target)}, shapes=symbols
        )


@pytest.mark.parametrize("k", [-1, 0, 1])
@pytest.mark.parametrize("upper", [0, 1])
def test_trilu(k: int, upper: int) -> None:
    nodes = [node("Trilu", "x k", "y", upper=upper)]
    check_gradients(nodes, {"x": floats(2, 3, 4)}, ["y"], ["x"], constants={"k": np.array(k, np.int64)})


def test_pad() -> None:
    nodes = [node("Exp", "x", "e"), node("Pad", "e p", "y")]
    check_gradients(nodes, {"x": floats(2, 3)}, ["y"], ["x"], constants={"p": ints(1, 0, 0, 2)})
    nodes = [node("Exp", "x", "e"), helper.make_node("Pad", ["e", "p", "", "a"], ["y"])]
    check_gradients(nodes, {"x": floats(2, 3)}, ["y"], ["x"], constants={"p": ints(1, 1), "a": ints(1)})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    arrays = {"a": floats(2, 3, 2), "b": floats(2, 3, 2), "c": floats(2, 3, 2)}
    loose = dict.fromkeys(arrays, (None, None, None))
    check_gradients([node("Concat", "a b c", "y", axis=axis)], arrays, ["y"], ["a", "c"], shapes=({}, loose))


@pytest.mark.parametrize("used", ["p", "q", "r", "p q", "p r", "p q r"])
def test_split_with_unused_outputs(used: str) -> None:
    nodes = [node("Exp", "x", "e"), node("Split", "e sizes", "p q r", axis=-1)]
    for outputs in [used.split()]:
        check_gradients(nodes, {"x": floats(2, 3, 4)}, outputs, ["x"], constants={"sizes": ints(1, 2, 1)}, shapes=OPEN)


def test_split_of_open_axis() -> None:
    nodes = [node("Exp", "x", "e"), node("Split", "e", "p q", axis=1, num_outputs=2)]
    check_gradients(nodes, {"x": floats(2, 4, 4)}, ["q"], ["x"], shapes=OPEN)


SLICES = [
    ((1,), (3,), (2,), (1,)),
    ((-2,), (9223372036854775807,), (2,), (1,)),
    ((0,), (2,), (1,), (1,)),
    ((0, 1), (2, 4), (1, 2), (1, 2)),
    ((1,), (4,), (-1,), (2,)),
    ((3,), (-5,), (2,), (-1,)),
]


@pytest.mark.parametrize(("starts", "stops", "axes", "steps"), SLICES)
def test_slice(starts: tuple[int, ...], stops: tuple[int, ...], axes: tuple[int, ...], steps: tuple[int, ...]) -> None:
    constants = {"s": ints(*starts), "e": ints(*stops), "a": ints(*axes), "k": ints(*steps)}
    nodes = [node("Exp", "x", "h"), node("Slice", "h s e a k", "y")]
    check_gradients(nodes, {"x": floats(2, 3, 4)}, ["y"], ["x"], constants=constants, shapes=OPEN)


def test_slice_to_a_length_of_run_time() -> None:
    nodes = [node("Shape", "z", "n", start=0, end=1), node("Slice", "x zero n zero", "y"), node("Mul", "y z", "w")]
    arrays = {"x": floats(5, 2), "z": floats(3, 1)}
    shapes = ({}, {"z": ("t", 1)}, {"x": (None, None), "z": (None, None)})
    check_gradients(nodes, arrays, ["w"], ["x"], constants={"zero": ints(0)}, shapes=shapes)


def test_halves_that_are_rotated() -> None:
    """Slices that cover an axis, one of them twice."""
    nodes = [
        node("Slice", "x zero two last", "a"),
        node("Slice", "x two four last", "b"),
        node("Neg", "b", "n"),
        node("Concat", "n a", "r", axis=-1),
        node("Mul", "r x", "p"),
        node("Slice", "x one four last", "c"),
    ]
    constants = {"zero": ints(0), "one": ints(1), "two": ints(2), "four": ints(4), "last": ints(-1)}
    check_gradients(nodes, {"x": floats(2, 3, 4)}, ["p", "c"], ["x"], constants=constants, shapes=OPEN)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("indices", [[0, 2, 2, -1], [[1, 1], [0, 1]], 1])
def test_gather(axis: int, indices: object) -> None:
    nodes = [node("Exp", "x", "e"), node("Gather", "e i", "y", axis=axis)]
    check_gradients(
        nodes, {"x": floats(3, 3, 4)}, ["y"], ["x"], constants={"i": np.array(indices, np.int64)}, shapes=OPEN
    )


def test_table_that_is_read_and_multiplied() -> None:
    nodes = [node("Gather", "w i", "h"), node("MatMul", "h t", "y"), node("Transpose", "w", "t")]
    nodes = [nodes[2], nodes[0], nodes[1]]
    arrays = {"w": floats(5, 3), "i": np.array([[1, 4, 1], [0, 1, 1]])}
    check_gradients(nodes, arrays, ["y"], ["w"], shapes=({}, {"i": ("b", "t")}))


def test_gather_elements_and_nd() -> None:
    arrays = {"x": floats(3, 4), "i": np.array([[0, 0], [3, 1], [2, 2]])}
    check_gradients([node("GatherElements", "x i", "y", axis=1)], arrays, ["y"], ["x"])
    arrays = {"x": floats(3, 4), "i": np.array([[0, 1], [2, 3], [0, 1]])}
    check_gradients([node("GatherND", "x i", "y")], arrays, ["y"], ["x"])
