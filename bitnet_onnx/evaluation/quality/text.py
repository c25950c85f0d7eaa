"""Texts as tokens that know how many bytes they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.tokenizer import TextTokenizer

#: Bounds the memory of its tokens, 12 bytes for each, and the minutes that cutting it takes.
MAX_TEXT_BYTES: Final = 64 << 20
#: Characters that are cut into tokens at a time: the library takes 600 bytes a token meanwhile.
_PIECE: Final = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class TokenText:
    """A text as tokens.

    Attributes:
        name: the file.
        ids: int32 `[T]`.
        ends: int64 `[T]`, bytes of the text that are complete with each token. A character of several tokens is
            complete with its last one.
    """

    name: str
    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]

    def bytes(self, start: int, stop: int) -> int:
        """Bytes of the tokens `start` to `stop`."""
        return int(self.ends[stop - 1]) - (int(self.ends[start - 1]) if start else 0)


def read_text(path: Path) -> str:
    """The content of a text file, ends of lines as they are.

    Raises:
        InputError: it cannot be read, is empty, larger than `MAX_TEXT_BYTES`, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"{path}: larger than the limit of {MAX_TEXT_BYTES} bytes; give a part of it")
    if not data:
        raise InputError(f"{path}: is empty; give a text to score")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; convert the text first") from None


def tokenize(text: str, tokenizer: TextTokenizer, name: str) -> TokenText:
    """The tokens of a text, without a beginning token; texts of control tokens are plain text.

    A text of more than 262,144 characters is cut behind ends of lines first, so that memory stays bounded.

    Raises:
        InputError: the tokenizer does not belong to the model.
    """
    ids: list[npt.NDArray[np.int32]] = []
    ends: list[npt.NDArray[np.int64]] = []
    before = start = 0
    while start < len(text):
        stop = cut(text, start, _PIECE)
        piece = text[start:stop]
        tokens, offsets = tokenizer.encode_with_offsets(piece)
        sizes = _byte_offsets(piece)
        if tokens:
            ids.append(np.array(tokens, np.int32))
            ends.append(before + sizes[_complete(np.array(offsets, np.int64))])
        before += int(sizes[-1])
        start = stop
    if not ids:
        return TokenText(name, np.empty(0, np.int32), np.empty(0, np.int64))
    return TokenText(name, np.concatenate(ids), np.maximum.accumulate(np.concatenate(ends)))


def cut(text: str, start: int, size: int) -> int:
    """Where a piece of at most `size` characters from `start` on ends: in front of a line, where tokens end too.

    In a text without such lines it ends in front of a space, or anywhere.
    """
    stop = start + size
    if stop >= len(text):
        return len(text)
    end = stop
    while (end := text.rfind("\n", start, end)) > start:
        if not text[end + 1].isspace():
            return end + 1
    space = text.rfind(" ", start + 1, stop)
    return stop if space < 0 else space


def _byte_offsets(text: str) -> npt.NDArray[np.int64]:
    """Bytes of UTF-8 before each character, and of all."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _complete(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Characters that are complete with each token: not the one that the next token begins in, too."""
    stops = offsets[:, 1]
    return np.append(np.minimum(stops[:-1], np.maximum(offsets[1:, 0], offsets[:-1, 0])), stops[-1:])
