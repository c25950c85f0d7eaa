"""Small Core ML packages written by hand, for what must be refused, and what must become of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from bounded_command import run_bounded

from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation.mil import verify
from bitnet_onnx.evaluation.mil._protobuf import model_message

if importlib.util.find_spec("coremltools") is None:
    pytest.skip("coremltools is not installed: not every system has it", allow_module_level=True)

MODEL = "com.apple.CoreML/model.mlmodel"
WEIGHTS = "@model_path/weights/weight.bin"
FLOAT16, FLOAT32, INT32, UINT1 = 10, 11, 23, 37
#: Of types in files of weights.
BLOB_TYPES = {FLOAT16: 1, FLOAT32: 2, UINT1: 9}


class Program:
    """A program under construction: `main` of iOS 18, one float32 input `x` `[4]`."""

    def __init__(self) -> None:
        self.model = model_message()()
        self.model.specificationVersion = 9
        self.function = self.model.mlProgram.functions["main"]
        self.function.opset = "CoreML8"
        self.block = self.function.block_specializations["CoreML8"]
        given = self.function.inputs.add(name="x")
        self.type(given.type, FLOAT32, (4,))
        self.block.outputs.append("x")

    @staticmethod
    def type(message: Any, element: int, shape: tuple[int, ...]) -> None:
        message.tensorType.dataType = element
        message.tensorType.rank = len(shape)
        for size in shape:
            message.tensorType.dimensions.add().constant.size = size

    def operation(self, kind: str, inputs: dict[str, str], output: str, shape: tuple[int, ...] = (4,)) -> Any:
        made = self.block.operations.add(type=kind)
        for parameter, name in inputs.items():
            made.inputs[parameter].arguments.add(name=name)
        named = made.outputs.add(name=output)
        self.type(named.type, FLOAT32, shape)
        return made

    def stored(
        self, name: str, offset: int, shape: tuple[int, ...], element: int = FLOAT32, file: str = WEIGHTS
    ) -> None:
        """A constant in a file of weights."""
        made = self.operation("const", {}, name, shape)
        made.outputs[0].type.tensorType.dataType = element
        value = made.attributes["val"]
        self.type(value.type, element, shape)
        value.blobFileValue.fileName, value.blobFileValue.offset = file, offset

    def save(self, folder: Path, weights: bytes = b"") -> Path:
        """Write the package."""
        return write(folder, self.model.SerializeToString(), weights)


def write(folder: Path, model: bytes, weights: bytes = b"", *, path: str = MODEL) -> Path:
    """A package of given files."""
    data = folder / "p.mlpackage" / "Data"
    (data / MODEL).parent.mkdir(parents=True)
    (data / MODEL).write_bytes(model)
    if weights:
        (data / "com.apple.CoreML" / "weights").mkdir()
        (data / "com.apple.CoreML" / "weights" / "weight.bin").write_bytes(weights)
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {"A": {"author": "com.apple.CoreML", "name": "model.mlmodel", "path": path}},
        "rootModelIdentifier": "A",
    }
    (data.parent / "Manifest.json").write_text(json.dumps(manifest))
    return data.parent


def header(count: int = 1, version: int = 2) -> bytes:
    """The first 64 bytes of a file of weights."""
    return count.to_bytes(4, "little") + version.to_bytes(4, "little") + bytes(56)


def record(size: int, offset: int, *, kind: int = 2, sentinel: int = 0xDEADBEEF, padding: int = 0) -> bytes:
    """64 bytes that say where the data of a tensor lie."""
    numbers = (size, offset, padding)
    return (
        sentinel.to_bytes(4, "little")
        + kind.to_bytes(4, "little")
        + b"".join(number.to_bytes(8, "little") for number in numbers)
        + bytes(32)
    )


def refused(package: Path, match: str) -> None:
    """It is refused in this process, with one line."""
    with pytest.raises(InputError, match=match) as caught:
        verify(package)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def refused_bounded(package: Path, folder: Path) -> str:
    """It is refused by the command within 10 s of processor time and 1.5 GB of addresses; the line that says why."""
    folder.mkdir()
    ended = run_bounded("validate", package, folder=folder)
    assert (ended.status, ended.out) == (2, ""), (ended.status, ended.out[:500], ended.err[:3000])
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 1000
    assert not list(folder.iterdir())
    return line
