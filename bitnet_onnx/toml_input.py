"""TOML from strangers: bounded in size and in what its parser can be made to do."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

from bitnet_onnx.errors import InputError

#: The parser's work grows with the square of a key's parts.
MAX_DOTS: Final = 64


def load_toml(path: Path, *, max_bytes: int) -> dict[str, Any]:
    """Parse a TOML file.

    Args:
        path: of the file.
        max_bytes: the most that it may hold.

    Raises:
        InputError: the file cannot be read, is larger, has a line of more than `MAX_DOTS` dots, or is not TOML.
    """
    try:
        # Not `stat`: a device or a pipe has no size.
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise InputError(f"{path}: {path.stat().st_size} bytes, above the limit of {max_bytes}")
        if b"\0" in data:
            raise InputError(f"{path}: not TOML: it holds binary data")
        for number, line in enumerate(data.split(b"\n"), 1):
            if line.count(b".") > MAX_DOTS and not line.lstrip().startswith(b"#"):
                raise InputError(
                    f"{path}: line {number} has {line.count(b'.')} dots, above the limit of {MAX_DOTS}; "
                    f"write what it lists in several lines"
                )
        return tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not TOML: {' '.join(str(error).split()):.200}") from None


def toml_string(text: str) -> str:
    """`text` as a basic string."""
    escaped = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else f"\\{c}" if c in '\\"' else c for c in text
    )
    return f'"{escaped}"'
