"""Class 2: files cut anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bounded_command import refused
from safetensors.numpy import save
from tiny_checkpoints import llama_metadata, llama_tensors, write_directory, write_gguf

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import CheckpointError

WEIGHTS = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)})


def test_safetensors_cut_at_every_byte(tmp_path: Path) -> None:
    for size in range(len(WEIGHTS)):
        path = write_directory(tmp_path, WEIGHTS[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match="tensors end at byte"):
        open_checkpoint(write_directory(tmp_path, WEIGHTS + b"\0"))


def test_gguf_cut_at_every_byte(tmp_path: Path) -> None:
    metadata = llama_metadata(llama__block_count=0) | {"x.strings": ["a", "", "ccc"], "x.floats": [0.5]}
    tensors = {name: values for name, values in llama_tensors(3).items() if not name.startswith("blk")}
    whole = write_gguf(tmp_path / "whole.gguf", metadata, tensors).read_bytes()
    # The writer pads the end; the last tensor itself must be there.
    data_end = len(whole) - (-tensors["output_norm.weight"].nbytes % 32)
    cut = tmp_path / "cut.gguf"
    for size in [*range(1200), *range(1200, data_end, 37), data_end - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(cut)
    cut.write_bytes(whole[:data_end])
    open_checkpoint(cut).close()


@pytest.mark.parametrize("grown", [False, True])
def test_a_file_that_changes_after_it_was_opened(tmp_path: Path, grown: bool) -> None:
    path = write_directory(tmp_path, WEIGHTS)
    with open_checkpoint(path) as checkpoint:
        (path / "model.safetensors").write_bytes(WEIGHTS + b"x" if grown else WEIGHTS[:-20])
        if grown:
            np.testing.assert_array_equal(checkpoint.read("b"), np.ones(4))
        else:
            with pytest.raises(CheckpointError, match="bytes missing"):
                checkpoint.read("a"), checkpoint.read("b")


@pytest.mark.parametrize("part", ["length", "header", "data"])
def test_the_command_line(tiny_checkpoint: Callable[[str], Path], tmp_path: Path, part: str) -> None:
    source = shutil.copytree(tiny_checkpoint("untied_gqa"), tmp_path / "source")
    weights = (source / "model.safetensors").read_bytes()
    size = {"length": 5, "header": 500, "data": len(weights) - 1}[part]
    (source / "model.safetensors").write_bytes(weights[:size])
    assert "model.safetensors" in refused(source, tmp_path / "out")


def test_the_command_line_with_gguf(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", llama_metadata(), llama_tensors(3))
    path.write_bytes(path.read_bytes()[:-100])
    assert "x.gguf: tensor" in refused(path, tmp_path / "out")
