"""Class 5: shapes that overflow, are negative, zero or of too many dimensions."""

from __future__ import annotations

from pathlib import Path

import pytest
from bounded_command import refused
from tiny_checkpoints import description, entry, gguf_bytes, safetensors_bytes, write_directory

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import CheckpointError

SAFETENSORS = [
    (entry(shape=[2, 4]), "takes 32 bytes, data_offsets span 24"),
    (entry("F16"), "takes 12 bytes"),
    (entry(shape=[2**33, 2**33]), "exceeds the limit of 9223372036854775807 bytes"),
    (entry(shape=[2**63, 2, 3]), "exceeds the limit of 9223372036854775807 bytes"),
    (entry(shape=[-2, -3]), "integers >= 0"),
    (entry(shape=[True, 6]), "integers >= 0"),
    (entry(shape=[2.0, 3.0]), "integers >= 0"),
    (entry(shape=[1] * 8 + [6]), "at most 8"),
    (entry(shape="6"), "shape must be"),
    (entry(shape=None), "shape must be"),
    (entry(shape=[0, 2**63], end=0), "exceeds the limit of 9223372036854775807 bytes"),
    (entry(shape=[2**32, 0, 2**32], end=0), "exceeds the limit of 9223372036854775807 bytes"),
    (entry(shape=[0, 3]), "takes 0 bytes, data_offsets span 24"),
]
GGUF = [
    ([2**32, 2**32], "takes .* bytes, more than the file has"),
    ([2**63, 2], "takes .* bytes, more than the file has"),
    ([2**64 - 32, 2**64 - 1, 2**64 - 1], "takes .* bytes, more than the file has"),
    ([0, 4], "has an empty dimension"),
    ([1, 1, 1, 1, 32], "5 dimensions, expected 1 to 4"),
    ([], "0 dimensions, expected 1 to 4"),
]


@pytest.mark.parametrize(("tensor", "message"), SAFETENSORS)
def test_safetensors(tmp_path: Path, tensor: object, message: str) -> None:
    path = write_directory(tmp_path, safetensors_bytes({"a": tensor}, bytes(24)))
    with pytest.raises(CheckpointError, match=rf"tensor 'a': .*{message}"):
        open_checkpoint(path)


@pytest.mark.parametrize(("shape", "message"), GGUF)
def test_gguf(tmp_path: Path, shape: list[int], message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes([], [description("a", shape)], data=bytes(128)))
    with pytest.raises(CheckpointError, match=rf"tensor 'a': .*{message}"):
        open_checkpoint(path)


def test_empty_tensors_are_read(tmp_path: Path) -> None:
    header = {"a": entry(shape=[0, 2**40], end=0), "b": entry(shape=[], end=4)}
    with open_checkpoint(write_directory(tmp_path, safetensors_bytes(header, bytes(4)))) as checkpoint:
        assert checkpoint.read("a").shape == (0, 2**40)
        assert checkpoint.read("b").shape == ()


@pytest.mark.parametrize("shape", [[0, 2**63], [1] * 9])
def test_the_command_line(tmp_path: Path, shape: list[int]) -> None:
    source = write_directory(tmp_path / "source", safetensors_bytes({"a": entry(shape=shape, end=0)}, b""))
    assert "model.safetensors: tensor 'a'" in refused(source, tmp_path / "out")


def test_the_command_line_with_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes([], [description("a", [2**63, 2])], data=bytes(128)))
    assert "x.gguf: tensor 'a': F32 [2, 9223372036854775808] takes" in refused(path, tmp_path / "out")
