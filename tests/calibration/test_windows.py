"""Windows out of texts that are longer, shorter or stranger than one would like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_package import byte_tokenizer

from bitnet_onnx.calibration.windows import Sampling, read_windows
from bitnet_onnx.errors import InputError


class _Bytes:
    """Every byte a token, behind a token for the beginning."""

    BEGIN = 300

    def __init__(self) -> None:
        self._tokenizer = byte_tokenizer()

    def encode(self, text: str, *, parse_special: bool, add_bos: bool) -> list[int]:
        assert not parse_special
        return [self.BEGIN, *self._tokenizer.encode(text).ids]

    def decode(self, ids: list[int]) -> str:
        assert ids[0] == self.BEGIN
        return str(self._tokenizer.decode(ids[1:]))


def _windows(files: list[Path], **options: object) -> list[str]:
    tokenizer = _Bytes()
    found = read_windows(files, tokenizer, **options)  # type: ignore[arg-type]
    return [tokenizer.decode(ids) for ids in found]


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_windows_are_parts_of_the_text_in_its_order(tmp_path: Path) -> None:
    words = [f"w{index:05}" for index in range(5000)]
    file = _write(tmp_path / "a", " ".join(words))
    found = _windows([file], count=20, length=50)
    assert len(found) == 20
    firsts = [int(window[1:6]) for window in found]
    assert firsts == sorted(firsts)
    # One in each twentieth.
    assert all(index * 250 - 10 <= first <= (index + 1) * 250 + 10 for index, first in enumerate(firsts[:-1]))
    text = " ".join(words)
    assert all(len(window) == 49 and window in text for window in found)


def test_files_get_windows_by_their_size(tmp_path: Path) -> None:
    small, large = _write(tmp_path / "a", "a " * 500), _write(tmp_path / "b", "b " * 4500)
    found = _windows([small, large], count=50, length=11, sampling=Sampling.STRATIFIED)
    assert [window[:1] for window in found] == ["a"] * 5 + ["b"] * 45
    uniform = _windows([small, large], count=200, length=11, sampling=Sampling.UNIFORM)
    assert 5 <= sum(window[0] == "a" for window in uniform) <= 40


@pytest.mark.parametrize("character", ["é", "日", "𝄞"])
def test_characters_are_never_cut_at_the_beginning(tmp_path: Path, character: str) -> None:
    file = _write(tmp_path / "a", character * 3000)
    for window in _windows([file], count=30, length=13):
        assert window.rstrip("\ufffd") == character * (12 // len(character.encode()))


def test_a_text_of_long_tokens_is_read_further(tmp_path: Path) -> None:
    class Words(_Bytes):
        def encode(self, text: str, *, parse_special: bool, add_bos: bool) -> list[int]:
            return list(range(len(text.split())))

    file = _write(tmp_path / "a", ("x" * 300 + " ") * 100)
    assert [len(ids) for ids in read_windows([file], Words(), count=3, length=40)] == [40] * 3  # type: ignore[arg-type]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    short = _write(tmp_path / "short", "few words")
    with pytest.raises(InputError, match="short: no window of 64 tokens; give more text"):
        _windows([short], count=3, length=64)
    with pytest.raises(InputError, match="none: no such file"):
        _windows([tmp_path / "none"], count=1, length=2)
    latin = _write(tmp_path / "latin", b"a b c " * 100 + b"\xe9t\xe9 " * 100)
    with pytest.raises(InputError, match="latin: not UTF-8 at byte 6"):
        _windows([latin], count=20, length=30)


def test_a_huge_file_is_not_read_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "huge"
    with file.open("wb") as stream:
        stream.write(b"word " * 1000)
        stream.seek(1 << 36)
        stream.write(b"word " * 1000)
    found = _windows([file], count=2, length=16)
    assert len(found) == 2
    assert np.all([len(window) == 15 for window in found])
