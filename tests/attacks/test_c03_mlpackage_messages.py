"""Programs that are too much: messages without end, depth, truncation, values that grow."""

from __future__ import annotations

from pathlib import Path

import pytest
from mil_packages import FLOAT32, INT32, Program, refused, refused_bounded, write

from bitnet_onnx.evaluation.mil._protobuf import model_message
from bitnet_onnx.evaluation.mil._wire import MAX_FIELDS


def field(number: int, content: bytes) -> bytes:
    """A field that holds bytes."""
    tag, length = number << 3 | 2, len(content)
    numbers = b""
    for value in (tag, length):
        while value >= 128:
            numbers += bytes([value & 127 | 128])
            value >>= 7
        numbers += bytes([value])
    return numbers + content


def program_of(block: bytes) -> bytes:
    """A model whose function `main` has a given block."""
    function = field(2, b"CoreML8") + field(3, field(1, b"CoreML8") + field(2, block))
    return b"\x08\x09" + field(502, b"\x08\x01" + field(2, field(1, b"main") + field(2, function)))


def test_an_operation_of_two_bytes_a_million_times(tmp_path: Path) -> None:
    """Four bytes of a file become a hundred of memory."""
    package = write(tmp_path, program_of(field(3, b"") * (MAX_FIELDS + 1)))
    assert f"more than {MAX_FIELDS} fields, the limit" in refused_bounded(package, tmp_path / "run")


def test_blocks_within_blocks(tmp_path: Path) -> None:
    block = b""
    for _ in range(40):
        block = field(3, field(4, block))
    refused(write(tmp_path, program_of(block)), "messages nest deeper than 64 levels")


def test_types_within_types(tmp_path: Path) -> None:
    kind = b""
    for _ in range(10_000):
        kind = field(2, field(1, kind))
    refused(write(tmp_path, program_of(field(1, field(2, kind)))), "messages nest deeper than 64 levels")


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    package = write(tmp_path, b"")
    with (package / "Data/com.apple.CoreML/model.mlmodel").open("wb") as file:
        file.truncate(1 << 40)
    assert "bytes exceed the limit of" in refused_bounded(package, tmp_path / "run")


def test_truncation_anywhere(tmp_path: Path) -> None:
    """It never reads as another program."""
    program = Program()
    program.operation("relu", {"x": "x"}, "y")
    whole = program.model.SerializeToString()
    for length in range(len(whole)):
        package = write(tmp_path / str(length), whole[:length])
        refused(package, "model.mlmodel")


@pytest.mark.parametrize("data", [b"\x00", b"\xff" * 11, b"hello", b"\x0b\x0c", b"\x09\x00", b"\x08"])
def test_other_bytes(data: bytes, tmp_path: Path) -> None:
    refused(write(tmp_path, data), "model.mlmodel")


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    model = model_message()()
    model.identity.SetInParent()
    refused(write(tmp_path, model.SerializeToString()), "expected an ML program")


def test_a_value_that_reads_itself(tmp_path: Path) -> None:
    program = Program()
    program.operation("relu", {"x": "y"}, "y")
    refused(program.save(tmp_path), "relu 'y' reads 'y' too early")


def test_values_that_double(tmp_path: Path) -> None:
    """Forty concatenations make a thousand billion elements out of four."""
    program = Program()
    axis = program.operation("const", {}, "axis", ())
    axis.outputs[0].type.tensorType.dataType = INT32
    program.type(axis.attributes["val"].type, INT32, ())
    axis.attributes["val"].immediateValue.tensor.ints.values.append(0)
    previous = "x"
    for step in range(38):
        made = program.operation("concat", {"axis": "axis"}, f"y{step}", (4 << (step + 1),))
        for _ in range(2):
            made.inputs["values"].arguments.add(name=previous)
        previous = f"y{step}"
    assert "takes" in refused_bounded(program.save(tmp_path), tmp_path / "run")


def test_an_input_beyond_all_memory(tmp_path: Path) -> None:
    program = Program()
    program.type(program.function.inputs.add(name="z").type, FLOAT32, (1 << 20, 1 << 19))
    refused(program.save(tmp_path), "too large to try")


def test_a_state_beyond_all_memory(tmp_path: Path) -> None:
    program = Program()
    program.type(program.function.inputs.add(name="s").type.stateType.wrappedType, FLOAT32, (1 << 20, 1 << 19))
    refused(program.save(tmp_path), "state 's' takes 2199023255552 bytes, the limit is")


def test_an_operation_with_blocks(tmp_path: Path) -> None:
    program = Program()
    program.operation("relu", {"x": "x"}, "y").blocks.add()
    refused(program.save(tmp_path), "has blocks of its own")


@pytest.mark.parametrize("kind", ["", "while_loop", "a\nb" * 100])
def test_operations_that_are_not_known(kind: str, tmp_path: Path) -> None:
    program = Program()
    program.operation(kind, {"x": "x"}, "y")
    refused(program.save(tmp_path), "is not known here")


def test_metadata_that_lies(tmp_path: Path) -> None:
    from bitnet_onnx.converters.coreml.package import MANIFEST_KEY
    from bitnet_onnx.errors import PackageError
    from bitnet_onnx.evaluation.mil._manifest import read_manifest
    from bitnet_onnx.evaluation.mil.package import open_package

    for index, text in enumerate(
        ["", "[]", "{}", '{"format": 1}', '{"format": 1, "sizes": {}, "precisions": [], "source": {}}']
    ):
        program = Program()
        program.model.description.metadata.userDefined[MANIFEST_KEY] = text
        with (
            open_package(program.save(tmp_path / str(index))) as package,
            pytest.raises(PackageError, match="metadata"),
        ):
            read_manifest(package.program)
