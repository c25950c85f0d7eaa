"""Reading the small JSON files of a package, which are not to be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet_onnx.errors import PackageError
from bitnet_onnx.json_input import load_object

#: A tokenizer_config.json of today stays under 1 MB, and a manifest of 1000 layers too.
MAX_JSON_BYTES = 16 * 2**20


def read_text(path: Path, limit: int) -> str:
    """The UTF-8 text of `path`.

    Raises:
        PackageError: not a regular file, longer than `limit` bytes, or not UTF-8.
    """
    if not path.is_file():
        raise PackageError(f"{path}: missing, or not a regular file")
    try:
        size = path.stat().st_size
        if size > limit:
            raise PackageError(f"{path}: {size} bytes, above the limit of {limit}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PackageError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error.strerror}") from None


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        PackageError: as `read_text`, and when the text is not one JSON object within the bounds of `load_object`.
    """
    data = read_text(path, limit).encode()
    return load_object(data, str(path), max_bytes=limit, error=PackageError)
