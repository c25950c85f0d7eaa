"""A directory or a file that appears whole or not at all."""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.errors import PackageError
from bitnet_onnx.package_format import MANIFEST


@dataclass(frozen=True, slots=True)
class Kind:
    """What may be replaced: only what was written here.

    Attributes:
        name: in messages.
        ours: whether something that exists is one.
        sign: by what it is told, in messages.
    """

    name: str
    ours: Callable[[Path], bool]
    sign: str


PACKAGE: Final = Kind("package", lambda path: (path / MANIFEST).is_file(), f"no {MANIFEST}")


@contextmanager
def new_directory(target: Path, *, overwrite: bool, kind: Kind = PACKAGE) -> Iterator[Path]:
    """Yield a temporary directory beside `target` and rename it to `target` when the block succeeds.

    Whatever ends the block otherwise, an interrupt included, removes the temporary directory. An existing package is
    replaced only with `overwrite`, and anything that is not one of ours never is.

    Raises:
        PackageError: `target` exists and may not be replaced, or cannot be written.
    """
    with _work(target, lambda: _check(target, overwrite, kind)) as work:
        yield work
        _replace(work, target)


@contextmanager
def new_file(target: Path, *, overwrite: bool, kind: Kind) -> Iterator[Path]:
    """Yield the path of a file to create, and rename it to `target` when the block succeeds; as `new_directory`."""
    with _work(target, lambda: _check_file(target, overwrite, kind)) as work:
        file = work / target.name
        yield file
        file.replace(target)


@contextmanager
def _work(target: Path, check: Callable[[], None]) -> Iterator[Path]:
    """A temporary directory beside `target`; without success nothing is left, no folder made for it either."""
    absent: list[Path] = []
    complete = False
    # Named before it is made: an interrupt right after that must find it.
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial") if target.name else target
    try:
        check()
        absent = [folder for folder in target.parents if not folder.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            work.mkdir()
            yield work
            complete = True
        except OSError as error:
            # Free space is measured while what was written still takes its room.
            raise PackageError(_failure(target, error, work)) from error
        finally:
            remove(work)
    except OSError as error:
        raise PackageError(_failure(target, error)) from error
    finally:
        for folder in () if complete else absent:
            with suppress(OSError):
                folder.rmdir()


def remove(folder: Path) -> None:
    """Remove a directory with all it holds, if there is one; an interrupt takes effect afterwards."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        remove(folder)
        raise


class WriteError(OSError):
    """A file could not be written.

    Args:
        path: of the file.
        error: what the system said.
        needed: bytes that were to be written.
    """

    def __init__(self, path: Path, error: OSError, needed: int) -> None:
        super().__init__(error.errno, error.strerror, str(path))
        self.needed = needed


def free_bytes(path: Path) -> int:
    """What this user may still write on the disk of a path, whether or not that exists yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _failure(target: Path, error: OSError, work: Path | None = None) -> str:
    reason = error.strerror or str(error)
    hint = {
        errno.ENOSPC: "free some space, or choose another output",
        errno.EDQUOT: "free some space, or choose another output",
        errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another output",
    }.get(error.errno or 0)
    if hint is None:
        return f"{target}: cannot be written: {reason}"
    facts = [f"{error.needed} bytes more needed"] if isinstance(error, WriteError) else []
    with suppress(OSError):
        facts.append(f"{free_bytes(target)} free")
        # The system does not say which file; it is the one that was written last.
        files = list(work.iterdir()) if work is not None else []
        if files:
            target = target / max(files, key=lambda path: path.stat().st_mtime_ns).name
    return f"{target}: cannot be written: {reason} ({', '.join(facts)}); {hint}"


def _check(target: Path, overwrite: bool, kind: Kind) -> None:
    _check_name(target, kind, "directory")
    if not target.exists():
        return
    if not target.is_dir():
        raise PackageError(f"{target} exists and is not a directory: choose another output")
    if not any(target.iterdir()):
        return
    _check_replaceable(target, overwrite, kind)


def _check_file(target: Path, overwrite: bool, kind: Kind) -> None:
    _check_name(target, kind, "file")
    if not target.exists():
        return
    if not target.is_file():
        raise PackageError(f"{target} exists and is not a file: choose another output")
    _check_replaceable(target, overwrite, kind)


def _check_name(target: Path, kind: Kind, what: str) -> None:
    if target.name in ("", ".."):
        raise PackageError(f"{target} is no name for a {kind.name}: choose another output")
    if target.is_symlink():
        raise PackageError(f"{target} is a symbolic link: name the {what} itself")


def _check_replaceable(target: Path, overwrite: bool, kind: Kind) -> None:
    if not kind.ours(target):
        raise PackageError(f"{target} exists and is not a {kind.name} of ours ({kind.sign}): choose another output")
    if not overwrite:
        raise PackageError(f"{target} exists: choose another output, or replace it with --overwrite")


def _replace(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
        return
    retired = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    try:
        retired.mkdir(mode=0o700)
        target.rename(retired / "package")
        work.rename(target)
    finally:
        # An interrupt between the two must not cost the old package either.
        if not target.exists():
            (retired / "package").rename(target)
        remove(retired)
