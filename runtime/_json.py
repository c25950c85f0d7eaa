"""Reading the small JSON files of a package, which are not to be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet_onnx.errors import PackageError
from bitnet_onnx.json_input import load_object

#: A tokenizer_config.json of today stays under 1 MB, and a manifest of 1000 layers too.
MAX_JSON_BYTES = 16 * 2**20


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of `path`.

    Raises:
        PackageError: not a regular file, or longer than `limit` bytes.
    """
    if not path.is_file():
        raise PackageError(f"{path}: missing, or not a regular file")
    try:
        size = path.stat().st_size
        if size > limit:
            raise PackageError(f"{path}: {size} bytes, above the limit of {limit}")
        return path.read_bytes()
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error.strerror}") from None


def decode_utf8(data: bytes, path: Path) -> str:
    """`data`, which is what `path` holds, as text.

    Raises:
        PackageError: not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackageError(f"{path}: not UTF-8 at byte {error.start}") from None


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        PackageError: as `read_bytes`, and when this is not one JSON object within the bounds of `load_object`.
    """
    return load_object(read_bytes(path, limit), str(path), max_bytes=limit, error=PackageError)
