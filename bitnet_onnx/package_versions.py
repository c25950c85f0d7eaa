"""Which packages this version of bitnet-onnx reads (docs/versioning.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bitnet_onnx.errors import PackageError
from bitnet_onnx.package_format import (
    FORMAT_VERSION,
    OLDEST_FORMAT_VERSION,
    OLDEST_OPERATOR_VERSION,
    OPERATOR_VERSION,
)

_MAX_TOOL_VERSION: Final = 40


def check_versions(manifest: Mapping[str, object], path: Path) -> int:
    """The version of our operators that a package needs.

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
