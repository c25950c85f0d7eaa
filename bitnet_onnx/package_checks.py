"""What a path to a package has to be before anything else is read: whole, and of a version that is known here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bitnet_onnx.errors import PackageError
from bitnet_onnx.package_format import (
    ENGINE,
    FORMAT_VERSION,
    MANIFEST,
    MODEL,
    MODEL_DATA,
    OLDEST_FORMAT_VERSION,
    OLDEST_OPERATOR_VERSION,
    OPERATOR_VERSION,
)

_MAX_TOOL_VERSION: Final = 40
_TOGETHER: Final = (
    f"{MODEL} is the graph alone, its weights lie in {MODEL_DATA} beside it; copy the package's whole directory"
)


def misplaced_package(path: Path) -> str | None:
    """One line that says what to do, if a path is one file of a package, or a package without its other files."""
    if path.name in (MODEL, ENGINE, MODEL_DATA) and path.is_file():
        folder = path.parent
        if (folder / MANIFEST).is_file():
            return f"{path} is one file of a package: give its directory, {folder}"
        return f"{path} is one file of a package without the others: {_TOGETHER}"
    if (path / MODEL).is_file() and not (path / MANIFEST).is_file():
        return f"{path} holds {MODEL} without {MANIFEST}: {_TOGETHER}"
    return None


def check_versions(manifest: Mapping[str, object], path: Path) -> int:
    """The version of our operators that a package needs (docs/versioning.md).

    Args:
        manifest: the content of bitnet_onnx.json.
        path: where it is, for messages.

    Raises:
        PackageError: the package is in a format, or needs a version of the operators, that is not read here; the line
            says which side is to be renewed.
    """
    _check("format_version", manifest.get("format_version"), OLDEST_FORMAT_VERSION, FORMAT_VERSION, manifest, path)
    operator = manifest.get("operator")
    version = operator.get("version") if isinstance(operator, dict) else None
    return _check("operator version", version, OLDEST_OPERATOR_VERSION, OPERATOR_VERSION, manifest, path)


def _check(field: str, value: object, oldest: int, newest: int, manifest: Mapping[str, object], path: Path) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and oldest <= value <= newest:
        return value
    read = f"{newest}" if oldest == newest else f"{oldest} to {newest}"
    newer = isinstance(value, int) and not isinstance(value, bool) and value > newest
    remedy = "update bitnet-onnx" if newer else "convert the checkpoint again"
    raise PackageError(
        f"{path}: {field} is {value!r:.40}{_written_by(manifest)}, this version of bitnet-onnx reads {read}; {remedy}"
    )


def _written_by(manifest: Mapping[str, object]) -> str:
    version = manifest.get("tool_version")
    if isinstance(version, str) and 0 < len(version) <= _MAX_TOOL_VERSION and version.isprintable():
        return f", written by bitnet-onnx {version}"
    return ""
