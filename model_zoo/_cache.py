"""Where fetched models lie, and how a file gets there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bitnet_onnx.errors import ZooError

#: Called with a stage ("download", "extract", "verify"), the bytes done and the bytes in all.
Progress = Callable[[str, int, int], None]

#: Environment variable that moves the cache.
CACHE_VARIABLE = "BITNET_ONNX_CACHE"

_CHUNK = 1 << 20


def cache_root(platform: str = sys.platform) -> Path:
    """The folder of the cache: `$BITNET_ONNX_CACHE`, else the platform's place for caches.

    Raises:
        ZooError: neither the variable nor a home directory is set.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    try:
        if platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            return (Path(local) if local else Path.home() / "AppData" / "Local") / "bitnet-onnx" / "cache"
        if platform == "darwin":
            return Path.home() / "Library" / "Caches" / "bitnet-onnx"
        # The XDG specification says that a relative path in the variable is to be ignored.
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "bitnet-onnx"
    except RuntimeError as error:
        raise ZooError(f"no home directory to keep models in: set {CACHE_VARIABLE} to a folder") from error


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A fresh directory inside `folder` (made if absent), removed at the end whatever happens.

    It is on the file system of `folder`, so that a file is renamed into its place in one step.

    Raises:
        ZooError: `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise ZooError(
            f"{folder}: the model cache cannot be written ({error.strerror or error}): "
            f"set {CACHE_VARIABLE} to another folder"
        ) from error
    with temporary as name:
        yield Path(name)


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    total = path.stat().st_size
    done = 0
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress("verify", done, total)
    return digest.hexdigest()
