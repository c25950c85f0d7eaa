"""Class 1: a header longer than the file, above the cap, 0, or negative."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bounded_command import refused
from safetensors.numpy import save
from tiny_checkpoints import entry, safetensors_bytes, write_directory

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.checkpoints._safetensors_reader import MAX_HEADER
from bitnet_onnx.errors import CheckpointError

WEIGHTS = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)})


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (len(WEIGHTS) - 7, "header of .* bytes, but only"),
        (MAX_HEADER + 1, "exceeds the limit of 8000000"),
        (0, "not JSON"),
        (2**63, "exceeds the limit"),
        (2**64 - 1, "exceeds the limit"),
    ],
)
def test_header_length(tmp_path: Path, length: int, message: str) -> None:
    path = write_directory(tmp_path, length.to_bytes(8, "little") + WEIGHTS[8:])
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_an_empty_file_and_a_header_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="0 bytes are too few"):
        open_checkpoint(write_directory(tmp_path, b""))
    with open_checkpoint(
        write_directory(tmp_path, safetensors_bytes({"__metadata__": {"format": "pt"}}))
    ) as checkpoint:
        assert not checkpoint.tensors
    with open_checkpoint(write_directory(tmp_path, safetensors_bytes({"e": entry("F32", [0, 4], 0, 0)}))) as checkpoint:
        assert checkpoint.read("e").shape == (0, 4)


@pytest.mark.parametrize("length", [len(WEIGHTS) - 7, 2**63])
def test_the_command_line(tmp_path: Path, length: int) -> None:
    source = write_directory(tmp_path / "source", length.to_bytes(8, "little") + WEIGHTS[8:])
    assert "model.safetensors: header" in refused(source, tmp_path / "out")


def test_headers_of_many_shards_are_bounded_together(tmp_path: Path) -> None:
    """Each is within its cap, and all of them would take a minute."""
    source = write_directory(tmp_path / "source", b"")
    (source / "model.safetensors").unlink()
    names = [f"{index}.safetensors" for index in range(6)]
    index = {"weight_map": {name: name for name in names}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        header = {"__metadata__": {"text": "x" * 7_900_000}, name: entry("U8", [0], 0, 0)}
        (source / name).write_bytes(safetensors_bytes(header))
    assert "4.safetensors: header of 7900" in refused(source, tmp_path / "out")
