"""Documents out of text and JSONL files of any size: read in order, never whole."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from bitnet_onnx.calibration.windows import opened, text_size
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation.quality.text import cut
from bitnet_onnx.json_input import load_object
from bitnet_onnx.runtime.chat import Message

#: Of a JSONL line. Parsed it takes up to fifteen times as much.
MAX_LINE_BYTES: Final = 16 << 20
#: Characters of a piece.
PIECE: Final = 1 << 16
_BLOCK: Final = 1 << 20
_BOM: Final = codecs.BOM_UTF8
_MAX_CHARACTER_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """Up to `PIECE` characters of a document.

    Attributes:
        text: valid Unicode.
        begins: it is the first of its document.
        ends: it is the last one.
        line: of a JSONL file, from 1; 0 in a text.
    """

    text: str
    begins: bool
    ends: bool
    line: int = 0


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation.

    Attributes:
        messages: at least one.
        tools: as the template gets them.
        line: of the file, from 1.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] | None
    line: int


#: What a file is read as, with the bytes of the file up to its end.
Part: TypeAlias = tuple[Piece | Chat, int]


def is_jsonl(path: Path) -> bool:
    """Whether a file is read line by line."""
    return path.suffix.lower() == ".jsonl"


def holdout_start(path: Path, share: float) -> int:
    """The byte from which on a file is held out: behind the line end that is next to its last `share`.

    A text without line ends is cut in front of a space, or else between two characters.

    Raises:
        InputError: it cannot be read, or has no line end where one is needed.
    """
    size = text_size(path)
    aim = size - round(size * share)
    if not share or not size:
        return size
    reach = MAX_LINE_BYTES if is_jsonl(path) else _BLOCK
    with opened(path) as file:
        # From the byte before on: the share may begin with a line.
        file.seek(aim - 1)
        after = file.read(reach)
        found = after.find(b"\n")
        if found >= 0 and aim + found < size:
            return aim + found
        first = max(0, aim - reach)
        file.seek(first)
        before = file.read(aim - first).rstrip(b"\n") if aim == size else file.read(aim - first)
    found = before.rfind(b"\n")
    if found >= 0:
        return first + found + 1
    if is_jsonl(path):
        raise InputError(f"{path}: one line cannot be divided for a holdout; name a validation file instead")
    after = after[1:]
    if (found := after.find(b" ")) > 0:
        return aim + found
    while aim < size and after[:1] and after[0] & 0xC0 == 0x80:
        aim, after = aim + 1, after[1:]
    return aim


def read_parts(path: Path, start: int, stop: int) -> Iterator[Part]:
    """The documents between two bytes of a file, whose ends are ends of lines or of the file.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or has a wrong line; the message names it.
    """
    try:
        with opened(path) as file:
            yield from (_lines if is_jsonl(path) else _texts)(path, file, start, stop)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _texts(path: Path, file: BinaryIO, start: int, stop: int) -> Iterator[Part]:
    """A text as one document."""
    file.seek(start)
    decoder = codecs.getincrementaldecoder("utf-8")()
    at, waiting, begins = start, "", True
    while at < stop:
        data = file.read(min(_BLOCK, stop - at))
        if not data:
            raise InputError(f"{path}: became shorter while it was read")
        pending = len(decoder.getstate()[0])
        known = at
        at += len(data)
        if not known:
            data = data.removeprefix(_BOM)
            known = at - len(data)
        try:
            waiting += decoder.decode(data, final=at == stop)
        except UnicodeDecodeError as error:
            where = known - pending + error.start
            raise InputError(f"{path}: not UTF-8 at byte {where}; convert the text first") from None
        used = 0
        # One character more than a piece tells whether the next line is a good place.
        while len(waiting) - used > PIECE + 1:
            end = cut(waiting, used, PIECE)
            yield Piece(waiting[used:end], begins, ends=False), at
            used, begins = end, False
        waiting = waiting[used:]
    yield from _cut_pieces(waiting, begins, 0, at)


def _cut_pieces(text: str, begins: bool, line: int, at: int) -> Iterator[Part]:
    """The last pieces of a document."""
    used = 0
    while used < len(text) or begins:
        end = cut(text, used, PIECE)
        yield Piece(text[used:end], begins, end == len(text), line), at
        used, begins = end, False


def _lines(path: Path, file: BinaryIO, start: int, stop: int) -> Iterator[Part]:
    line = _count_lines(file, start)
    at = start
    while at < stop:
        data = file.readline(MAX_LINE_BYTES + 1)
        if not data:
            raise InputError(f"{path}: became shorter while it was read")
        if not at:
            data = data.removeprefix(_BOM)
        at = file.tell()
        line += 1
        if len(data) > MAX_LINE_BYTES:
            raise InputError(
                f"{path}: line {line} is longer than {MAX_LINE_BYTES} bytes; divide it, or give it as a text file"
            )
        if not data.strip():
            continue
        try:
            yield from _document(data, line, at)
        except InputError as error:
            raise at_line(path, line, error) from None


def at_line(path: Path, line: int, error: InputError) -> InputError:
    """The error with its place."""
    return InputError(f"{path}: line {line}: {str(error).removeprefix('line: ')}")


def _document(data: bytes, line: int, at: int) -> Iterator[Part]:
    fields = load_object(data, "line", max_bytes=MAX_LINE_BYTES)
    text, messages = fields.get("text"), fields.get("messages")
    if (text is None) == (messages is None):
        raise InputError("a line has either text or messages")
    if messages is not None:
        yield Chat(_messages(messages), _tools(fields.get("tools")), line), at
        return
    if not isinstance(text, str):
        raise InputError(f"text is a {type(text).__name__}, expected a string")
    check_unicode(text)
    yield from _cut_pieces(text, True, line, at)


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise InputError("messages is no list of messages")
    messages = []
    for index, one in enumerate(value):
        try:
            message = Message.parse(one)
            check_unicode(message.content)
        except InputError as error:
            raise InputError(f"message {index + 1}: {error}") from None
        messages.append(message)
    return tuple(messages)


def _tools(value: object) -> tuple[Mapping[str, object], ...] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise InputError("tools is no list of objects")
    return tuple(value)


def check_unicode(text: str) -> None:
    """Refuse what cannot be written as UTF-8.

    Raises:
        InputError: a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not valid Unicode: lone surrogate at character {error.start}") from None


def _count_lines(file: BinaryIO, start: int) -> int:
    """Line ends before a byte, which is where the file stands then."""
    file.seek(0)
    lines = left = 0
    left = start
    while left and (data := file.read(min(_BLOCK, left))):
        lines += data.count(b"\n")
        left -= len(data)
    return lines
