"""A Core ML package with some bytes changed is run, or refused with one line; nothing else happens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mil_packages import FLOAT16, INT32, UINT1, Program, header, record

from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation.mil import verify

SEEDS = 3
FLIPS = 60


def sound(folder: Path) -> Path:
    """A program with weights of three kinds, constants, a slice and a product."""
    program = Program()
    program.stored("w", 64, (3, 4))
    program.stored("m", 192, (4, 8), UINT1)
    program.stored("h", 320, (12,), FLOAT16)
    for name, values in (("axes", [0]), ("begin", [0, 1]), ("end", [1, 3])):
        made = program.operation("const", {}, name, (len(values),))
        made.outputs[0].type.tensorType.dataType = INT32
        program.type(made.attributes["val"].type, INT32, (len(values),))
        made.attributes["val"].immediateValue.tensor.ints.values.extend(values)
    program.operation("expand_dims", {"x": "x", "axes": "axes"}, "e", (1, 4))
    program.operation("linear", {"x": "e", "weight": "w"}, "y", (1, 3))
    program.operation("slice_by_index", {"x": "y", "begin": "begin", "end": "end"}, "z", (1, 2))
    program.operation("softmax", {"x": "z", "axis": "axes"}, "s", (1, 2))
    program.block.outputs.append("s")
    weights = header(3) + record(48, 128) + np.arange(16, dtype="<f4").tobytes()
    weights += record(4, 256, kind=9) + bytes(64) + record(24, 384, kind=1) + bytes(64)
    return program.save(folder, weights)


def test_it_runs_as_it_is(tmp_path: Path) -> None:
    (trial,) = verify(sound(tmp_path)).trials
    assert trial.outputs == {"x": (4,), "s": (1, 2)}


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", ["model.mlmodel", "weights/weight.bin"])
def test_flipped_bytes(name: str, seed: int, tmp_path: Path) -> None:
    package = sound(tmp_path)
    file = package / "Data/com.apple.CoreML" / name
    whole = file.read_bytes()
    random = np.random.default_rng(seed)
    refused = 0
    for _ in range(FLIPS):
        data = bytearray(whole)
        for place in random.integers(0, len(data), random.integers(1, 4)):
            data[place] = random.integers(0, 256)
        file.write_bytes(bytes(data))
        try:
            verify(package, options=None)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017 - either may happen
            assert len(str(error)) < 1000  # noqa: PT017
    assert refused
