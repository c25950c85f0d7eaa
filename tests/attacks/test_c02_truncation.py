"""Classes 1 and 2: lengths that lie, and files cut anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from tiny_checkpoints import entry, llama_metadata, llama_tensors, safetensors_bytes, write_directory, write_gguf

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.checkpoints._safetensors_reader import MAX_HEADER
from bitnet_onnx.errors import BitnetOnnxError, CheckpointError


def is_one_short_line(error: BitnetOnnxError) -> bool:
    return str(error).isprintable() and len(str(error)) < 600


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


def test_every_flipped_bit_of_a_safetensors_header(tmp_path: Path) -> None:
    """Either the file is refused, or its tensors still lie within it."""
    header_end = len(WEIGHTS) - 32
    refused = accepted = 0
    for position in range(header_end):
        for bit in range(8):
            broken = bytearray(WEIGHTS)
            broken[position] ^= 1 << bit
            path = write_directory(tmp_path, bytes(broken))
            try:
                with open_checkpoint(path) as checkpoint:
                    assert sum(info.nbytes for info in checkpoint.tensors.values()) == 32
                    for name in checkpoint.tensors:
                        checkpoint.read(name)
                accepted += 1
            except BitnetOnnxError as error:
                refused += is_one_short_line(error)
    assert refused + accepted == header_end * 8, "a message of more than one line"
    assert refused > header_end * 4


def test_every_flipped_byte_of_a_gguf_header(tmp_path: Path) -> None:
    metadata = llama_metadata(llama__block_count=0)
    tensors = {name: values for name, values in llama_tensors(3).items() if not name.startswith("blk")}
    whole = write_gguf(tmp_path / "whole.gguf", metadata, tensors).read_bytes()
    broken_path = tmp_path / "broken.gguf"
    refused = accepted = 0
    positions = range(len(whole) - 1024 - 32)
    for position in positions:
        for mask in (0xFF, 0x01, 0x80):
            broken = bytearray(whole)
            broken[position] ^= mask
            broken_path.write_bytes(broken)
            try:
                with open_checkpoint(broken_path) as checkpoint:
                    for name in checkpoint.tensors:
                        checkpoint.read(name)
                accepted += 1
            except BitnetOnnxError as error:
                refused += is_one_short_line(error)
    assert refused + accepted == len(positions) * 3, "a message of more than one line"
    assert refused > len(positions)


def test_an_empty_file_and_a_header_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="0 bytes are too few"):
        open_checkpoint(write_directory(tmp_path, b""))
    with open_checkpoint(
        write_directory(tmp_path, safetensors_bytes({"__metadata__": {"format": "pt"}}))
    ) as checkpoint:
        assert not checkpoint.tensors
    with open_checkpoint(write_directory(tmp_path, safetensors_bytes({"e": entry("F32", [0, 4], 0, 0)}))) as checkpoint:
        assert checkpoint.read("e").shape == (0, 4)
