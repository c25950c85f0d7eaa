"""Sources to token files, once for each content, tokenizer and way of reading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from bitnet_onnx.calibration.windows import opened
from bitnet_onnx.errors import InputError
from bitnet_onnx.training.data._chats import encode_chat_with_answers
from bitnet_onnx.training.data._sources import PIECE, Chat, Piece, at_line, is_jsonl, read_parts
from bitnet_onnx.training.data.cache import FORMAT, TokenFile, TokenWriter, open_cached, written
from bitnet_onnx.training.data.tokenizer import DataTokenizer

#: Characters that are encoded at once: the library takes up to 600 bytes a token meanwhile.
_AT_ONCE: Final = 16 * PIECE
#: Texts that are: each costs, however short.
_TEXTS_AT_ONCE: Final = 4096
_BLOCK: Final = 1 << 22
_KEY_SHOWN: Final = 16


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file that is tokenized by itself.

    Attributes:
        path: of the file.
        digest: SHA-256 of the whole file.
        start: its first byte.
        stop: the byte behind it.
    """

    path: Path
    digest: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stop - self.start


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        InputError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with opened(path) as file:
            while data := file.read(_BLOCK):
                digest.update(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def open_tokens(
    part: Part, tokenizer: DataTokenizer, folder: Path, *, answers_only: bool, progress: Callable[[int], None]
) -> TokenFile:
    """The tokens of a part: from the cache where they are there, else into it.

    A text is encoded in pieces of up to 65,536 characters, cut behind line ends in front of lines that do not begin
    with white space. Where a tokenizer never joins what stands before and behind such a place, as is so for every
    byte-level BPE in use, the tokens are those of the whole text; else they may differ at the cuts. A text without
    such places is cut in front of spaces.

    Args:
        part: what is read.
        tokenizer: of the model.
        folder: of the cache.
        answers_only: in chats only what the assistant says is learned.
        progress: called with the bytes of the part that are done.

    Raises:
        InputError: the source is wrong, or the cache cannot be written.
    """
    key = _key(part, tokenizer, answers_only)
    path = folder / f"{part.path.stem:.40}-{key[:_KEY_SHOWN]}.tokens"
    if (found := open_cached(path, part.path, key, tokenizer.vocab_size)) is not None:
        progress(part.size)
        return found
    before = part.path.stat()
    with written(path, tokenizer.vocab_size) as writer:
        tokens = _Tokens(part.path, tokenizer, writer, answers_only)
        for one, at in read_parts(part.path, part.start, part.stop):
            if tokens.add(one):
                progress(at - part.start)
        tokens.flush()
        after = part.path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InputError(f"{part.path}: changed while it was read; start again")
        writer.finish(key, part.path)
    progress(part.size)
    found = open_cached(path, part.path, key, tokenizer.vocab_size)
    if found is None:
        raise InputError(f"{path}: does not hold what was written to it; choose another cache")
    return found


def _key(part: Part, tokenizer: DataTokenizer, answers_only: bool) -> str:
    lines = is_jsonl(part.path)
    facts = [FORMAT, part.digest, part.start, part.stop, tokenizer.digest, lines, lines and answers_only]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(slots=True)
class _Tokens:
    """Documents on their way to a file: texts wait until there are enough to be encoded together."""

    path: Path
    tokenizer: DataTokenizer
    writer: TokenWriter
    answers_only: bool
    waiting: list[Piece] = field(default_factory=list)
    characters: int = 0

    def add(self, part: Piece | Chat) -> bool:
        """Take a part; whether it and all before it are encoded now."""
        if isinstance(part, Chat):
            self.flush()
            self._chat(part)
            return True
        self.waiting.append(part)
        self.characters += len(part.text)
        if self.characters < _AT_ONCE and len(self.waiting) < _TEXTS_AT_ONCE:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Encode what waits."""
        if not self.waiting:
            return
        pieces, self.waiting, self.characters = self.waiting, [], 0
        for piece, ids in zip(pieces, self._encoded(pieces), strict=True):
            if piece.begins and piece.ends and not ids:
                continue
            prefix = self.tokenizer.beginning if piece.begins else ()
            whole = [*prefix, *ids]
            if piece.ends and self.tokenizer.end is not None:
                whole.append(self.tokenizer.end)
            learned = np.ones(len(whole), np.bool_)
            learned[: len(prefix)] = False
            self.writer.add(whole, learned, documents=int(piece.begins), size=len(piece.text.encode()))

    def _encoded(self, pieces: list[Piece]) -> list[list[int]]:
        try:
            return self.tokenizer.encode_pieces([(piece.text, piece.begins) for piece in pieces])
        except InputError as error:
            raise InputError(f"{self.path}: {_lines(pieces)}{error}") from None

    def _chat(self, chat: Chat) -> None:
        try:
            encoded = encode_chat_with_answers(chat, self.tokenizer, answers_only=self.answers_only)
        except InputError as error:
            raise at_line(self.path, chat.line, error) from None
        ids, learned, end = encoded.ids, encoded.learned, self.tokenizer.end
        if not ids:
            return
        if end is not None and ids[-1] != end:
            ids.append(end)
            # Behind a turn that has no token for its end, this one is it.
            learned = np.append(learned, learned[-1])
        self.writer.add(ids, learned, documents=1, size=encoded.size)


def _lines(pieces: list[Piece]) -> str:
    lines = list(dict.fromkeys(piece.line for piece in pieces if piece.line))
    return "" if not lines else f"lines {lines[0]} to {lines[-1]}: "
