"""Windows of tokens out of text files of any size: only what is taken is read."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.tokenizer import TextTokenizer

#: Bytes that are read for each token of a window; where they do not suffice, four times as many.
_BYTES_A_TOKEN: Final = 8
_MORE: Final = 4
_MAX_CHARACTER_BYTES: Final = 4


class Sampling(enum.StrEnum):
    """Where windows begin: `stratified`, one in each of equal parts of the text; `uniform`, anywhere."""

    STRATIFIED = "stratified"
    UNIFORM = "uniform"


def read_windows(
    files: Sequence[Path],
    tokenizer: TextTokenizer,
    *,
    count: int,
    length: int,
    sampling: Sampling = Sampling.STRATIFIED,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Windows of the texts, in the order of the texts, the same for the same seed.

    Each begins behind white space, with the token for the beginning of a text where the tokenizer puts one.

    Args:
        files: UTF-8 texts; each has a share of the windows by its size.
        tokenizer: of the model.
        count: how many windows.
        length: tokens of each.
        sampling: where they begin.
        seed: of the places.

    Raises:
        InputError: a file cannot be read, is not UTF-8, or all are too short for one window.
    """
    sizes = [text_size(path) for path in files]
    total = sum(sizes)
    places = np.random.default_rng(seed).random(count)
    starts = np.sort(places) if sampling is Sampling.UNIFORM else (np.arange(count) + places) / count
    ends = np.cumsum(sizes)
    found = 0
    for start in (starts * total).astype(np.int64):
        index = min(int(np.searchsorted(ends, start, side="right")), len(files) - 1)
        window = _window(files[index], int(start - ends[index] + sizes[index]), sizes[index], tokenizer, length)
        if window is not None:
            found += 1
            yield window
    if not found:
        names = ", ".join(map(str, files))
        raise InputError(f"{names}: no window of {length} tokens; give more text or a smaller window")


def _window(path: Path, start: int, size: int, tokenizer: TextTokenizer, length: int) -> list[int] | None:
    """The tokens from about `start` on, or from earlier where the text ends before; None: the text is too short."""
    reach = length * _BYTES_A_TOKEN
    while True:
        begin = max(0, min(start, size - reach))
        with opened(path) as file:
            file.seek(begin)
            data = file.read(reach)
        ids = tokenizer.encode(_text(path, data, begin, begin + len(data) == size), parse_special=False, add_bos=True)
        if len(ids) >= length:
            return ids[:length]
        if begin == 0 and reach >= size:
            return None
        reach *= _MORE


def _text(path: Path, data: bytes, begin: int, to_the_end: bool) -> str:
    """What was read, but for characters and a first word that are not whole."""
    first = 0
    while begin and first < min(_MAX_CHARACTER_BYTES, len(data)) and data[first] & 0xC0 == 0x80:
        first += 1
    try:
        text = data[first:].decode("utf-8")
    except UnicodeDecodeError as error:
        if to_the_end or len(data) - first - error.start >= _MAX_CHARACTER_BYTES:
            where = begin + first + error.start
            raise InputError(f"{path}: not UTF-8 at byte {where}; convert the text first") from None
        text = data[first : first + error.start].decode("utf-8")
    if begin:
        words = text.split(maxsplit=1)
        text = words[1] if len(words) == 2 else text
    return text


def text_size(path: Path) -> int:
    """Bytes of a text.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path.stat().st_size


def opened(path: Path) -> BinaryIO:
    """A text, to be read.

    Raises:
        InputError: it cannot be.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
