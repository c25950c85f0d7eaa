"""The operator library in a folder of its own, with what an application needs to build on it."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.custom_ops import library_facts, library_name, library_remedy, required_library, sdk_files
from bitnet_onnx.errors import InputError, OperatorError

CHECKSUMS: Final = "SHA256SUMS"
_MAX_CHECKSUMS: Final = 1 << 16
_CHUNK: Final = 1 << 20
#: As `sha256sum` writes them; a name leads nowhere else.
_LINE: Final = re.compile(r"(?P<sha256>[0-9a-f]{64}) [ *](?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)")
_VERSION: Final = re.compile(r'^#define BITNET_OPS_VERSION "(.+)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SdkFile:
    """One file of the folder: its name, size in bytes, and SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


def copy_sdk(directory: Path, *, overwrite: bool = False) -> tuple[SdkFile, ...]:
    """Writes the operator library of this platform, its licence, header, CMake package, pkg-config file and checksums.

    Every file appears whole or not at all; files that are there already with the same content stay.

    Args:
        directory: where to; it is made with its parents.
        overwrite: replace files of the same names with other content.

    Raises:
        OperatorError: there is no library, or it is not the one that the header belongs to.
        InputError: a file is in the way, or the directory cannot be written.
    """
    contents = {library_name(): _read(_own_library())} | {path.name: _read(path) for path in sdk_files()}
    files = tuple(
        SdkFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in sorted(contents.items())
    )
    sums = "".join(f"{file.sha256}  {file.name}\n" for file in files).encode()
    contents[CHECKSUMS] = sums
    try:
        directory.mkdir(parents=True, exist_ok=True)
        wanted = {name: content for name, content in contents.items() if _differs(directory / name, content, overwrite)}
        for name, content in wanted.items():
            _write(directory / name, content)
    except OSError as error:
        where = error.filename2 or error.filename or directory
        raise InputError(f"{where}: cannot be written: {error.strerror}; choose another folder") from None
    return (*files, SdkFile(CHECKSUMS, len(sums), hashlib.sha256(sums).hexdigest()))


def verify_sdk(directory: Path) -> tuple[SdkFile, ...]:
    """Compares a folder with its checksums.

    Raises:
        InputError: a file is missing or differs, or there are no checksums.
    """
    sums = directory / CHECKSUMS
    try:
        with sums.open("rb") as file:
            text = file.read(_MAX_CHECKSUMS + 1)
    except OSError as error:
        raise InputError(f"{sums}: cannot be read: {error.strerror}; `bitnet-onnx ops --copy` writes it") from None
    if len(text) > _MAX_CHECKSUMS:
        raise InputError(f"{sums}: more than {_MAX_CHECKSUMS} bytes, which no such file has")
    lines = text.decode(errors="replace").splitlines()
    if not lines:
        raise InputError(f"{sums}: it is empty; `bitnet-onnx ops --copy` writes it")
    return tuple(_verified(directory, sums, line) for line in lines)


def _own_library() -> Path:
    path = required_library()
    facts = library_facts(path)
    header = next((_read(file).decode() for file in sdk_files() if file.suffix == ".h"), "")
    version = _VERSION.search(header)
    if version is None or version[1] != facts.version:
        raise OperatorError(
            f"{path} is bitnet_ops {facts.version}, and the header here is of {version and version[1]}: "
            f"{library_remedy(path)}"
        )
    return path


def _verified(directory: Path, sums: Path, line: str) -> SdkFile:
    found = _LINE.fullmatch(line)
    if found is None:
        raise InputError(f"{sums}: {line!r:.100} is no checksum and name of a file beside it")
    path = directory / found["name"]
    digest = hashlib.sha256()
    size = 0
    try:
        # Not what only looks like a file: a pipe would never end.
        if not path.is_file():
            raise InputError(f"{path}: missing, or not a regular file; copy the folder again")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if digest.hexdigest() != found["sha256"]:
        raise InputError(f"{path}: its content is not that of {CHECKSUMS}; copy the folder again")
    return SdkFile(found["name"], size, found["sha256"])


def _differs(path: Path, content: bytes, overwrite: bool) -> bool:
    """Whether a file has to be written."""
    if not os.path.lexists(path):
        return True
    regular = path.is_file() and not path.is_symlink()
    if regular and path.stat().st_size == len(content) and path.read_bytes() == content:
        return False
    if not overwrite:
        raise InputError(f"{path} exists with other content: choose another folder, or replace it with --overwrite")
    if not regular:
        raise InputError(f"{path} is not a regular file: remove it, or choose another folder")
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}; {library_remedy(path)}") from None


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o755 if path.suffix in (".so", ".dylib", ".dll") else 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
