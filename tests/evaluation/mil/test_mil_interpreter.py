"""States, half precision and declarations: what the interpreter says of a saved program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mil_programs import mb, run, save, state, tensor

from bitnet_onnx.errors import PackageError, UnsupportedError
from bitnet_onnx.evaluation.mil import verify
from bitnet_onnx.evaluation.mil._protobuf import model_message
from bitnet_onnx.evaluation.mil.interpreter import Interpreter, Mode
from bitnet_onnx.evaluation.mil.package import open_package

MODEL = "Data/com.apple.CoreML/model.mlmodel"


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    """The package with another program."""
    model = model_message()()
    model.ParseFromString((path / MODEL).read_bytes())
    change(model.mlProgram.functions["main"].block_specializations["CoreML8"])
    (path / MODEL).write_bytes(model.SerializeToString())
    return path


def twice_read(x: Any, cache: Any) -> Any:
    """A state is read, changed, and read again."""
    before = mb.read_state(input=cache, name="before")
    mb.coreml_update_state(state=cache, value=mb.add(x=before, y=x))
    after = mb.read_state(input=cache, name="after")
    return mb.sub(x=after, y=before, name="y")


def threaded(x: Any, cache: Any) -> Any:
    """A state is read once; what the update gives is read on."""
    before = mb.read_state(input=cache, name="before")
    after = mb.coreml_update_state(state=cache, value=mb.add(x=before, y=x))
    return mb.sub(x=after, y=before, name="y")


@pytest.mark.parametrize(
    ("body", "passes", "expected"),
    [(twice_read, False, 3), (twice_read, True, 0), (threaded, False, 3), (threaded, True, 3)],
    ids=["read twice", "read twice, rewritten", "threaded", "threaded, rewritten"],
)
def test_the_saved_program_counts_not_the_one_that_was_meant(
    body: Callable[..., Any], passes: bool, expected: float, tmp_path: Path
) -> None:
    """coremltools merges the two reads of a state: what it saves is another program, and values show it."""
    path = save(tmp_path / "p.mlpackage", [tensor(2, 3, dtype="float16"), state(2, 3)], body, passes=passes)
    (found,) = run(path, {"x": np.full((2, 3), 3)}).outputs.values()
    np.testing.assert_array_equal(found, np.full((2, 3), expected))


def test_states_stay_between_calls_and_calls_without_one_begin_with_zeros(tmp_path: Path) -> None:
    path = save(tmp_path / "p.mlpackage", [tensor(2, 3, dtype="float16"), state(2, 3)], threaded)
    with open_package(path) as package:
        interpreter = Interpreter(package)
        states = interpreter.states("main")
        for _ in range(3):
            interpreter.run("main", {"x": np.ones((2, 3))}, states)
        np.testing.assert_array_equal(states["cache"], np.full((2, 3), 3))
        interpreter.run("main", {"x": np.ones((2, 3))})
        np.testing.assert_array_equal(states["cache"], np.full((2, 3), 3))


@pytest.mark.parametrize("kept", [False, True], ids=["in place", "the old content is read later"])
def test_a_cache_is_updated_in_place_only_where_nobody_sees_it(kept: bool, tmp_path: Path) -> None:
    def body(x: Any, cache: Any) -> Any:
        old = mb.read_state(input=cache)
        part = mb.slice_by_index(x=old, begin=[0, 0], end=[4, 3])
        new = mb.slice_update(x=old, update=x, begin=[1, 0], end=[3, 3])
        after = mb.coreml_update_state(state=cache, value=new)
        return mb.sub(x=after, y=part if kept else after, name="y")

    path = save(tmp_path / "p.mlpackage", [tensor(2, 3, dtype="float16"), state(4, 3)], body)
    with open_package(path) as package:
        interpreter = Interpreter(package)
        states = interpreter.states("main")
        first = states["cache"]
        run = interpreter.run("main", {"x": np.full((2, 3), 5)}, states)
    expected = np.array([[0], [5], [5], [0]]) * np.ones(3)
    np.testing.assert_array_equal(states["cache"], expected)
    (found,) = run.outputs.values()
    np.testing.assert_array_equal(found, expected if kept else 0 * expected)
    assert (states["cache"] is first) is not kept


def naive_norm(x: Any) -> Any:
    """The root-mean-square norm in half precision."""
    mean = mb.reduce_mean(x=mb.mul(x=x, y=x, name="squares"), axes=[-1], keep_dims=True)
    return mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float16(1e-5)), name="y")


def test_half_precision_finds_the_square_that_overflows(tmp_path: Path) -> None:
    """One activation of 300 makes a norm of zeros, which is finite: only the operation before tells."""
    path = save(tmp_path / "p.mlpackage", [tensor(1, 4, dtype="float16")], naive_norm)
    x = np.array([[300, 1, -2, 0.5]])
    wide = run(path, {"x": x})
    assert not wide.findings
    np.testing.assert_allclose(wide.outputs["y"], x / np.sqrt((x * x).mean()), rtol=1e-5)
    half = run(path, {"x": x}, Mode.FLOAT16)
    np.testing.assert_array_equal(half.outputs["y"], 0)
    finding = half.findings[0]
    assert (finding.operation, finding.type, finding.what) == ("squares", "mul", "overflow")
    assert (finding.count, finding.index, finding.largest) == (1, (0, 0), 90000)
    assert finding.inputs == {"x": 300, "y": 300}
    assert str(finding) == "mul squares: 1 values up to 90000, the first at [0, 0]; x up to 300, y up to 300"


@pytest.mark.parametrize(
    ("x", "body", "found"),
    [
        ([[300.0, 2]], lambda x: mb.square(x=mb.relu(x=x), name="y"), "square y"),
        ([[300.0, 2]], lambda x: mb.reduce_sum_square(x=x, axes=[-1], name="y"), "squares of reduce_sum_square y"),
        ([[300.0, -300]], lambda x: mb.layer_norm(x=x, axes=[1], name="y"), "squares of layer_norm y"),
        ([[40000.0, 40000]], lambda x: mb.reduce_mean(x=x, axes=[-1], name="y"), "sum of reduce_mean y"),
        ([[12.0, 2]], lambda x: mb.exp(x=x, name="y"), "exp y"),
        ([[200.0, 200]], lambda x: mb.exp(x=x, name="y"), "exp y"),
        (
            [[900.0, 900]],
            lambda x: mb.squeeze(
                x=mb.scaled_dot_product_attention(
                    query=mb.expand_dims(x=x, axes=[0]),
                    key=mb.expand_dims(x=x, axes=[0]),
                    value=mb.expand_dims(x=x, axes=[0]),
                    name="a",
                ),
                name="y",
            ),
            "scores of scaled_dot_product_attention a",
        ),
        ([[1.0, 0]], lambda x: mb.real_div(x=x, y=mb.sub(x=x, y=x), name="y"), "real_div y"),
    ],
)
def test_half_precision_finds(x: Any, body: Callable[..., Any], found: str, tmp_path: Path) -> None:
    path = save(tmp_path / "p.mlpackage", [tensor(1, 2, dtype="float16")], body)
    findings = run(path, {"x": np.array(x)}, Mode.FLOAT16).findings
    assert str(findings[0]).startswith(f"{found}: ")
    small = run(path, {"x": np.array([[1.0, 2]])}, Mode.FLOAT16).findings
    assert not [finding for finding in small if finding.type != "real_div"]


def test_infinity_in_a_mask_is_no_overflow(tmp_path: Path) -> None:
    def body(x: Any, mask: Any) -> Any:
        return mb.softmax(x=mb.add(x=x, y=mask, name="masked"), axis=-1, name="y")

    path = save(tmp_path / "p.mlpackage", [tensor(1, 2, dtype="float16"), tensor(1, 2, dtype="float16")], body)
    found = run(path, {"x": np.ones((1, 2)), "mask": np.array([[0, -np.inf]])}, Mode.FLOAT16)
    assert not found.findings
    np.testing.assert_array_equal(found.outputs["y"], [[1, 0]])


def test_a_row_that_sees_nothing_is_reported(tmp_path: Path) -> None:
    path = save(tmp_path / "p.mlpackage", [tensor(1, 2)], lambda x: mb.softmax(x=x, axis=-1, name="y"))
    (finding,) = run(path, {"x": np.full((1, 2), -np.inf)}).findings
    assert (finding.what, finding.count) == ("nan", 2)
    assert "2 values are not numbers" in str(finding)


def linear(path: Path) -> Path:
    return save(
        path / "p.mlpackage",
        [tensor(2, None, dtype="float16")],
        lambda x: mb.mul(x=mb.relu(x=x, name="r"), y=np.float16(2), name="y"),
    )


def outputs(block: Any, kind: str) -> Any:
    return next(operation for operation in block.operations if operation.type == kind).outputs[0]


def declare_shape(block: Any) -> None:
    outputs(block, "mul").type.tensorType.dimensions[0].constant.size = 3


def declare_rank(block: Any) -> None:
    del outputs(block, "mul").type.tensorType.dimensions[0]


def declare_type(block: Any) -> None:
    outputs(block, "mul").type.tensorType.dataType = 11


def read_later(block: Any) -> None:
    relu = next(operation for operation in block.operations if operation.type == "relu")
    relu.inputs["x"].arguments[0].name = "y"


def name_twice(block: Any) -> None:
    outputs(block, "mul").name = "r"


def forget(block: Any) -> None:
    block.outputs[0] = "nothing"


def unknown(block: Any) -> None:
    next(operation for operation in block.operations if operation.type == "relu").type = "frobnicate"


def more_outputs(block: Any) -> None:
    relu = next(operation for operation in block.operations if operation.type == "relu")
    relu.outputs.add().CopyFrom(relu.outputs[0])
    relu.outputs[1].name = "second"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (declare_shape, r"mul 'y': 'y' is declared float16\[3, \?\], computed is float16\[2, 4\]"),
        (declare_rank, r"'y' is declared float16\[\?\], computed is float16\[2, 4\]"),
        (declare_type, r"'y' is declared float32\[2, \?\], computed is float16\[2, 4\]"),
        (read_later, r"relu 'r' reads 'y' too early"),
        (name_twice, r"two values have the name 'r'"),
        (forget, r"the output 'nothing' is never computed"),
        (more_outputs, r"2 outputs are declared, it gives 1"),
    ],
)
def test_what_is_declared_is_what_is_computed(change: Callable[[Any], None], problem: str, tmp_path: Path) -> None:
    path = linear(tmp_path)
    assert run(path, {"x": np.ones((2, 4))}).outputs["y"].shape == (2, 4)
    with pytest.raises(PackageError, match=problem):
        run(changed(path, change), {"x": np.ones((2, 4))})


def test_operands_of_different_types_are_refused(tmp_path: Path) -> None:

    def body(x: Any, z: Any) -> Any:
        return mb.add(x=x, y=mb.cast(x=z, dtype="fp16", name="c"), name="y")

    def skip(block: Any) -> None:
        add = next(operation for operation in block.operations if operation.type == "add")
        add.inputs["y"].arguments[0].name = "z"

    path = save(tmp_path / "p.mlpackage", [tensor(2, dtype="float16"), tensor(2)], body)
    given = {"x": np.ones(2), "z": np.ones(2)}
    np.testing.assert_array_equal(run(path, given).outputs["y"], [2, 2])
    with pytest.raises(PackageError, match=r"add 'y': x is float16, y is float32: they must be of one type"):
        run(changed(path, skip), given)


def test_an_unknown_operation_is_named_before_anything_runs(tmp_path: Path) -> None:
    path = changed(linear(tmp_path), unknown)
    with pytest.raises(UnsupportedError, match=r"function 'main': the operation 'frobnicate' of 'r' is not known here"):
        verify(path)


def test_inputs_must_be_what_the_program_takes(tmp_path: Path) -> None:
    path = linear(tmp_path)
    with pytest.raises(PackageError, match=r"'x' is float16\[2, \?\], given are \[3, 4\]"):
        run(path, {"x": np.ones((3, 4))})
    with pytest.raises(PackageError, match="the input 'x' is not given"):
        run(path, {})
    with pytest.raises(PackageError, match="there is no function 'other'"):
        run(path, {}, function="other")
    with pytest.raises(PackageError, match="there is no value 'nothing'"):
        run(path, {"x": np.ones((2, 4))}, keep=["nothing"])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (lambda x, i: mb.gather(x=x, indices=i, axis=0, name="y"), r"indices holds 7 to 7, expected 0 to 2"),
        (lambda x, i: mb.reshape(x=x, shape=mb.concat(values=[i, i], axis=0), name="y"), r"cannot be laid out"),
        (lambda x, i: mb.tile(x=x, reps=mb.mul(x=i, y=np.int32(100_000_000)), name="y"), r"bytes"),
        (lambda x, i: mb.fill(shape=mb.mul(x=i, y=np.int32(100_000_000)), value=np.float16(1), name="y"), r"bytes"),
        (
            lambda x, i: mb.cast(x=mb.mul(x=i, y=np.int32(10_000)), dtype="int16", name="y"),
            r"int16 holds -32768 to 32767",
        ),
        (lambda x, i: mb.floor_div(x=i, y=mb.sub(x=i, y=i), name="y"), r"a zero, which integers are not divided by"),
        (
            lambda x, i: mb.slice_update(
                x=x, update=np.zeros(2, np.float16), begin=mb.sub(x=i, y=np.int32(5)), end=i, name="y"
            ),
            r"update is \[2\], the slice of \[3\] is \[1\]",
        ),
    ],
)
def test_values_that_make_an_operation_impossible(body: Callable[..., Any], problem: str, tmp_path: Path) -> None:
    path = save(tmp_path / "p.mlpackage", [tensor(3, dtype="float16"), tensor(1, dtype="int32")], body)
    with pytest.raises(PackageError, match=problem):
        run(path, {"x": np.ones(3), "i": np.array([7])})


def test_a_program_of_others_is_run_on_made_up_inputs(tmp_path: Path) -> None:
    def body(x: Any, cache: Any) -> Any:
        return naive_norm(x), mb.read_state(input=cache, name="held")

    path = save(tmp_path / "p.mlpackage", [tensor(1, None, dtype="float16"), state(2, 3)], body)
    found = verify(path)
    assert found.holds
    (trial,) = found.trials
    assert (trial.function, trial.inputs) == ("main", {"x": (1, 1)})
    assert trial.outputs == {"y": (1, 1), "held": (2, 3)}
    assert found.as_dict()["holds"] is True
