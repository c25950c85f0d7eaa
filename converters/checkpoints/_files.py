"""Files of a checkpoint: which paths may be opened at all, and reads that never go past the end."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.json_input import shown

_HASH_CHUNK = 1 << 20


def member(directory: Path, name: str) -> Path | None:
    """The path of a file that lies in `directory`, or None if there is none of that name.

    A symbolic link is followed when it ends inside the directory, or inside the same Hugging Face cache entry
    (`models--ORG--NAME/snapshots/REV/FILE` links to `models--ORG--NAME/blobs/HASH`).

    Raises:
        CheckpointError: the name is not a plain file name, the link leads elsewhere, or the target is not a
            regular file.
    """
    if name in {"", ".", ".."} or any(character in name for character in "/\\:") or not name.isprintable():
        raise CheckpointError(f"{directory}: {shown(name)} is not a plain file name")
    path = directory / name
    try:
        if not path.is_symlink() and not path.exists():
            return None
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be opened ({_reason(error)})") from error
    root = cache_entry(directory) or directory.resolve()
    if not target.is_relative_to(root):
        raise CheckpointError(f"{path}: links to {shown(str(target))}, outside the checkpoint; copy the file instead")
    if not target.is_file():
        raise CheckpointError(f"{path}: not a regular file")
    return path


def cache_entry(directory: Path) -> Path | None:
    """The `models--ORG--NAME` folder of the Hugging Face cache that `directory` is a snapshot of."""
    resolved = directory.resolve()
    if resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--"):
        return resolved.parent.parent
    return None


def read_small(directory: Path, name: str, *, max_bytes: int) -> bytes | None:
    """The bytes of a small file of a checkpoint, or None if there is none; larger than `max_bytes`: an error."""
    path = member(directory, name)
    if path is None:
        return None
    with BinaryFile(path) as file:
        if file.size > max_bytes:
            raise CheckpointError(f"{path}: {file.size} bytes exceed the limit of {max_bytes}")
        return file.read(0, file.size)


class BinaryFile:
    """A regular file with positioned reads.

    Reads rather than a memory map: pages of a map count as this process's memory until the kernel takes them
    back, and a file that shrinks under a map kills the process instead of raising.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        # O_NONBLOCK: opening a pipe must not wait for a writer. It changes nothing for a regular file.
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._file = open(os.open(path, flags), "rb", buffering=0)  # noqa: PTH123, SIM115
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened ({_reason(error)})") from error
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            self._file.close()
            raise CheckpointError(f"{path}: not a regular file")
        self.size = status.st_size
        self._lock = threading.Lock()  # where seek and read are two steps

    def __enter__(self) -> BinaryFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._file.close()

    def read_into(self, offset: int, target: npt.NDArray[Any]) -> None:
        """Fill a one-dimensional contiguous array with the bytes from `offset` on."""
        view = target.view(np.uint8).data
        done = 0
        try:
            while done < len(view):
                count = self._read_some(offset + done, view[done:])
                if not count:
                    break
                done += count
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({_reason(error)})") from error
        if done < len(view):
            raise CheckpointError(f"{self.path}: ends at byte {offset + done}, {len(view) - done} bytes missing")

    def _read_some(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(view)

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on; the caller has checked them against `size`."""
        data = np.empty(count, np.uint8)
        self.read_into(offset, data)
        return data.tobytes()

    def sha256(self, stop: threading.Event | None = None) -> str:
        """The SHA-256 of the whole file, in hexadecimal; of less when `stop` is set meanwhile."""
        digest = hashlib.sha256()
        buffer = np.empty(_HASH_CHUNK, np.uint8)
        for offset in range(0, self.size, _HASH_CHUNK):
            if stop is not None and stop.is_set():
                break
            part = buffer[: self.size - offset]
            self.read_into(offset, part)
            digest.update(part.data)
        return digest.hexdigest()


def sha256_of(files: Mapping[str, BinaryFile], stop: threading.Event | None = None) -> str:
    """SHA-256 of the file, or for several of the lines `NAME:DIGEST`, sorted by name."""
    digests = {name: file.sha256(stop) for name, file in sorted(files.items())}
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{name}:{digest}\n" for name, digest in digests.items()).encode()).hexdigest()


@contextmanager
def hashing(files: Mapping[str, BinaryFile]) -> Iterator[Callable[[], str]]:
    """Hash files beside other work; what is given waits for `sha256_of` and raises its errors."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, files, stop)
        try:
            yield digest.result
        finally:
            stop.set()


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "a loop of links"
