"""Class 6: dtypes that are unknown or newer than this reader, and odd counts of elements below a byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from bounded_command import refused
from tiny_checkpoints import description, entry, gguf_bytes, safetensors_bytes, write_directory

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import CheckpointError, UnsupportedError

#: What later versions of the format have, by name; the first three pack several elements into a byte or three.
NEWER = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "C64")


@pytest.mark.parametrize("dtype", [*NEWER, "f32", "", 4, None, ["F32"], "F32\n" * 1000])
def test_unknown_dtypes(tmp_path: Path, dtype: object) -> None:
    path = write_directory(tmp_path, safetensors_bytes({"a": entry() | {"dtype": dtype}}, bytes(24)))
    with pytest.raises(UnsupportedError, match=r"tensor 'a': dtype .* is not one of") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("dtype", NEWER[:3])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_odd_counts_below_a_byte(tmp_path: Path, dtype: str, count: int) -> None:
    """Refused by name, before anybody rounds bits to bytes."""
    tensor = entry(dtype, [count], 0, (count * (4 if dtype == "F4" else 6) + 7) // 8)
    path = write_directory(tmp_path, safetensors_bytes({"a": tensor}, bytes(8)))
    with pytest.raises(UnsupportedError, match=f"tensor 'a': dtype '{dtype}' is not one of"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", [2, 8, 12, 35])
def test_gguf_rows_that_are_no_whole_blocks(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes([], [description("a", [33, 2], kind)], data=bytes(512)))
    with pytest.raises(CheckpointError, match=r"tensor 'a': rows of 33 are not whole blocks of"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", [4, 5, 31, 33, 37, 99, 2**32 - 1])
def test_gguf_type_ids_that_are_none(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes([], [description("a", [32], kind)], data=bytes(512)))
    with pytest.raises(UnsupportedError, match=f"tensor 'a': type id {kind}"):
        open_checkpoint(path)


@pytest.mark.parametrize("dtype", ["F4", "C64"])
def test_the_command_line(tmp_path: Path, dtype: str) -> None:
    source = write_directory(tmp_path / "source", safetensors_bytes({"a": entry() | {"dtype": dtype}}, bytes(24)))
    assert f"model.safetensors: tensor 'a': dtype '{dtype}' is not one of" in refused(source, tmp_path / "out")
