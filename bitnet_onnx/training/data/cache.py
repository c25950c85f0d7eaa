"""Tokens in a file: written once, in order, and mapped afterwards."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Final, Self

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.json_input import load_object

logger = logging.getLogger(__name__)

#: Changes whenever the same source gives other tokens, or the same tokens another file.
FORMAT: Final = 1
_MAGIC: Final = b"BNTOKENS"
#: Magic and JSON, filled with spaces; the ids begin behind it, the bits of what is learned behind the ids.
_HEADER_BYTES: Final = 1024
_BLOCK: Final = 1 << 22
_SMALL: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Counts:
    """What some data holds.

    Attributes:
        tokens: of all documents, with those between them.
        documents: texts, lines and chats that are not empty.
        learned: tokens that the loss counts.
        bytes: of the documents' text.
    """

    tokens: int = 0
    documents: int = 0
    learned: int = 0
    bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tokens + other.tokens,
            self.documents + other.documents,
            self.learned + other.learned,
            self.bytes + other.bytes,
        )


class BrokenCacheError(Exception):
    """A file of tokens is not what it should be; the text says how."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenFile:
    """The tokens of a source, on disk.

    Attributes:
        source: the file that they are of.
        key: digest of all that they depend on.
        counts: of them.
    """

    source: Path
    key: str
    counts: Counts
    _ids: npt.NDArray[np.unsignedinteger] = field(repr=False)
    _bits: npt.NDArray[np.uint8] = field(repr=False)

    @classmethod
    def open(cls, path: Path, source: Path, key: str, vocab_size: int) -> Self:
        """Map a file and check all of it.

        Raises:
            BrokenCacheError: it is not what `TokenWriter` wrote for `key`.
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
            if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
                raise BrokenCacheError("it does not begin as one")
            try:
                fields = load_object(header[len(_MAGIC) :].rstrip(), "header", max_bytes=_HEADER_BYTES)
            except InputError as error:
                raise BrokenCacheError(str(error)) from None
            dtype = id_type(vocab_size)
            counts = _counts(fields)
            if fields.get("format") != FORMAT or fields.get("key") != key or fields.get("dtype") != dtype.str:
                raise BrokenCacheError("it is of another source")
            ids, bits = counts.tokens * dtype.itemsize, -(-counts.tokens // 8)
            if size != _HEADER_BYTES + ids + bits:
                raise BrokenCacheError(f"it has {size} bytes, its header says {_HEADER_BYTES + ids + bits}")
            if _digest(file, ids, dtype, vocab_size) != fields.get("digest"):
                raise BrokenCacheError("its digest is wrong")
        if not counts.tokens:
            return cls(source, key, counts, np.empty(0, dtype), np.empty(0, np.uint8))
        return cls(
            source,
            key,
            counts,
            np.memmap(path, dtype, "r", _HEADER_BYTES, (counts.tokens,)),
            np.memmap(path, np.uint8, "r", _HEADER_BYTES + ids, (bits,)),
        )

    def ids(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens, int64 `[stop - start]`."""
        return self._ids[start:stop].astype(np.int64)

    def learned(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which of them the loss counts, bool `[stop - start]`."""
        first = start // 8
        bits = np.unpackbits(self._bits[first : -(-stop // 8)])
        return bits[start - 8 * first : stop - 8 * first].astype(np.bool_)


def id_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _counts(fields: dict[str, object]) -> Counts:
    found = fields.get("counts")
    if not isinstance(found, dict) or set(found) != set(asdict(Counts())):
        raise BrokenCacheError("its header has no counts")
    for name, value in found.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise BrokenCacheError(f"{name} of its header is {value!r:.40}")
    return Counts(**found)


def _digest(file: IO[bytes], ids: int, dtype: np.dtype[np.unsignedinteger], vocab_size: int) -> str:
    """SHA-256 of what follows, while every id is checked."""
    digest = hashlib.sha256()
    left = ids
    while data := file.read(min(_BLOCK, left) if left else _BLOCK):
        if left:
            left -= len(data)
            if int(np.frombuffer(data, dtype).max()) >= vocab_size:
                raise BrokenCacheError(f"it holds an id beyond the vocabulary of {vocab_size}")
        digest.update(data)
    return digest.hexdigest()


class TokenWriter:
    """Writes the tokens of a source; memory does not depend on how many.

    Args:
        file: what is written to, at its beginning.
        bits: an empty file for what is learned.
        vocab_size: of the model.
    """

    def __init__(self, file: IO[bytes], bits: IO[bytes], vocab_size: int) -> None:
        self._file = file
        self._bits = bits
        self._type = id_type(vocab_size)
        self._digest = hashlib.sha256()
        self._ids: list[npt.NDArray[np.unsignedinteger]] = []
        self._learned: list[npt.NDArray[np.bool_]] = []
        self._waiting = 0
        self.counts = Counts()
        file.write(b" " * _HEADER_BYTES)

    def add(self, ids: list[int], learned: npt.NDArray[np.bool_], *, documents: int, size: int) -> None:
        """Append tokens.

        Args:
            ids: below the size of the vocabulary.
            learned: of each.
            documents: that begin with them.
            size: bytes of text that they stand for.
        """
        self._ids.append(np.array(ids, self._type))
        self._learned.append(learned)
        self._waiting += len(ids)
        self.counts += Counts(len(ids), documents, int(np.count_nonzero(learned)), size)
        if self._waiting >= _SMALL:
            self._write(self._waiting // 8 * 8)

    def _write(self, count: int) -> None:
        """Write the first of the waiting tokens: a multiple of eight, or all."""
        ids, learned = np.concatenate(self._ids), np.concatenate(self._learned)
        data = ids[:count].tobytes()
        self._digest.update(data)
        self._file.write(data)
        self._bits.write(np.packbits(learned[:count]).tobytes())
        self._ids, self._learned = [ids[count:]], [learned[count:]]
        self._waiting -= count

    def finish(self, key: str, source: Path) -> None:
        """Write what waits, the bits behind the ids, and the header."""
        if self._waiting:
            self._write(self._waiting)
        self._bits.seek(0)
        while data := self._bits.read(_BLOCK):
            self._digest.update(data)
            self._file.write(data)
        fields = {
            "format": FORMAT,
            "key": key,
            "dtype": self._type.str,
            "counts": asdict(self.counts),
            "digest": self._digest.hexdigest(),
            "source": ascii(source.name)[:64],
        }
        self._file.seek(0)
        self._file.write((_MAGIC + json.dumps(fields).encode()).ljust(_HEADER_BYTES))
        self._file.flush()
        os.fsync(self._file.fileno())


def open_cached(path: Path, source: Path, key: str, vocab_size: int) -> TokenFile | None:
    """The tokens at `path`; None where there are none, or where the file is broken and has to be written again."""
    try:
        return TokenFile.open(path, source, key, vocab_size)
    except FileNotFoundError:
        return None
    except BrokenCacheError as error:
        logger.warning("%s: no usable cache of tokens: %s; it is written again", path, error)
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; remove it, or choose another cache") from None


@contextmanager
def written(path: Path, vocab_size: int) -> Iterator[TokenWriter]:
    """A writer whose file takes the place of `path` when all went well, and is gone when not.

    Raises:
        InputError: the file cannot be written, as on a full disk.
    """
    work = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with work.open("xb") as file, tempfile.TemporaryFile(dir=path.parent) as bits:
            yield TokenWriter(file, bits, vocab_size)
        work.replace(path)
    except OSError as error:
        raise _not_written(path, error) from None
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InputError(f"{path}: cannot be written: {reason}; choose another cache")
    free = ""
    with suppress(OSError):
        free = f" ({shutil.disk_usage(path.parent).free} bytes free)"
    return InputError(f"{path}: cannot be written: {reason}{free}; free some space, or choose another cache")
