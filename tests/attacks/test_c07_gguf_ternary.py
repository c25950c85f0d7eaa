"""Class 7: ternary tensors of a GGUF whose sizes, scales or codes lie."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ternary_gguf import LAYOUTS, Stored, floats, write_raw
from tiny_gguf import metadata

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import CheckpointError, InputError, UnsupportedError

NAME = "model.embed_tokens.weight"


def write(path: Path, type_id: int, data: bytes, shape: tuple[int, int], *rest: Stored, pad: bool = True) -> Path:
    pairs = metadata("llama", embedding_length=shape[1], vocab_size=shape[0], rope__dimension_count=None)
    return write_raw(path, pairs, [Stored("token_embd.weight", shape, type_id, data), *rest], pad=pad)


def q2_0(block: int, rows: int, columns: int) -> bytes:
    layout = LAYOUTS[f"Q2_0-{block}"]
    return layout.matrix(np.ones((rows, columns), np.uint8), np.ones(rows * columns // block))


def refused(path: Path, error: type[Exception], message: str, **options: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(path, **options)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


# --- sizes ---------------------------------------------------------------------------------------------------


def test_q2_0_that_fits_both_layouts(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", 42, q2_0(64, 1, 256), (1, 256))  # 72 or 68 bytes, 96 with padding
    refused(path, CheckpointError, "fit blocks of 64 and of 128")
    norm = floats("output_norm.weight", np.ones(256))
    refused(write(tmp_path / "y.gguf", 42, q2_0(128, 1, 256), (1, 256), norm), CheckpointError, "fit blocks of 64 and")


def test_q2_0_that_fits_neither_layout(tmp_path: Path) -> None:
    for extra in (32, 64, -32):
        data = q2_0(64, 40, 256)
        data = data + bytes(extra) if extra > 0 else data[:extra]
        refused(
            write(tmp_path / "x.gguf", 42, data, (40, 256)),
            CheckpointError,
            r"Q2_0 \[40, 256\] takes 2880 \(blocks of 64\) or 2720 \(blocks of 128\) bytes, but has",
        )


def test_q2_0_tensors_of_different_layouts(tmp_path: Path) -> None:
    other = Stored("output.weight", (40, 256), 42, q2_0(128, 40, 256))
    path = write(tmp_path / "x.gguf", 42, q2_0(64, 40, 256), (40, 256), other)
    refused(path, CheckpointError, "in blocks of 128, but another tensor has blocks of 64")


def test_q2_0_rows_that_are_not_whole_blocks(tmp_path: Path) -> None:
    # 64 columns: only the smaller block can be; 32: none.
    with open_checkpoint(write(tmp_path / "x.gguf", 42, q2_0(64, 2, 64), (2, 64))) as checkpoint:
        assert checkpoint.read_quantized(NAME) is not None
    refused(write(tmp_path / "y.gguf", 42, bytes(36), (4, 32)), CheckpointError, r"Q2_0 \[4, 32\] takes")


def test_i2_s_needs_the_name_of_its_layout(tmp_path: Path) -> None:
    layout = LAYOUTS["I2_S"]
    data = layout.matrix(np.ones((40, 128), np.uint8), np.ones(1))
    path = write(tmp_path / "x.gguf", 36, data, (40, 128))
    refused(path, UnsupportedError, "I2_S .*several byte layouts.*--i2s-layout x86")
    with pytest.raises(InputError, match="i2s_layout is 'arm': choose one of x86"):
        open_checkpoint(path, i2s_layout="arm")
    refused(write(tmp_path / "y.gguf", 36, data, (80, 64)), CheckpointError, "whole blocks of 128", i2s_layout="x86")
    path = write(tmp_path / "z.gguf", 36, data[:-32], (40, 128))
    refused(path, CheckpointError, "ends at byte", i2s_layout="x86")
    norm = floats("output_norm.weight", np.ones(128))
    refused(
        write(tmp_path / "w.gguf", 36, data[:-32], (40, 128), norm),
        CheckpointError,
        "inside the one before",
        i2s_layout="x86",
    )


# --- scales and codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q2_0-64", "Q2_0-128", "I2_S"])
@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf"), float("-inf")])
def test_scales_that_cannot_be(tmp_path: Path, name: str, scale: float) -> None:
    layout = LAYOUTS[name]
    scales = np.ones((40, 512 // layout.block))
    scales[7, 1] = scale
    if name == "I2_S":
        scales[:] = scale
    data = layout.matrix(np.ones((40, 512), np.uint8), scales)
    path = write(tmp_path / "x.gguf", layout.type_id, data, (40, 512))
    at = 0 if name == "I2_S" else 7 * 512 + layout.block
    with open_checkpoint(path, i2s_layout="x86") as checkpoint:
        for read in (checkpoint.read, checkpoint.read_quantized):
            with pytest.raises(CheckpointError, match=rf"'model\.embed_tokens\.weight' has scale .*at element {at};"):
                read(NAME)


def test_i2_s_code_3(tmp_path: Path) -> None:
    codes = np.ones((40, 128), np.uint8)
    codes[3, 77] = 3
    data = LAYOUTS["I2_S"].matrix(codes, np.ones(1))
    with open_checkpoint(write(tmp_path / "x.gguf", 36, data, (40, 128)), i2s_layout="x86") as checkpoint:
        for read in (checkpoint.read, checkpoint.read_quantized):
            with pytest.raises(CheckpointError, match=rf"holds code 3 at element {3 * 128 + 77}; .*another layout"):
                read(NAME)


def test_zero_scales_are_zeros(tmp_path: Path) -> None:
    """Whatever the codes beneath them say."""
    data = LAYOUTS["I2_S"].matrix(np.full((40, 128), 2, np.uint8), np.zeros(1))
    assert data[-32:-28] == struct.pack("<f", 0)
    with open_checkpoint(write(tmp_path / "x.gguf", 36, data, (40, 128)), i2s_layout="x86") as checkpoint:
        found = checkpoint.read_quantized(NAME)
        assert found is not None
        assert not found.signed().any()
        assert found.scale.tolist() == [1.0]
        assert not checkpoint.read(NAME).any()


def test_a_file_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", 42, q2_0(64, 400, 256), (400, 256))
    with open_checkpoint(path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(2000)
        with pytest.raises(CheckpointError, match="bytes missing"):
            checkpoint.read_quantized(NAME)
