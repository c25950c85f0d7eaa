"""A directory that appears whole or not at all."""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bitnet_onnx.errors import PackageError
from bitnet_onnx.package_format import MANIFEST


@contextmanager
def new_directory(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary directory beside `target` and rename it to `target` when the block succeeds.

    Whatever ends the block otherwise, an interrupt included, removes the temporary directory. An existing package is
    replaced only with `overwrite`, and anything that is not a package of ours never is.

    Raises:
        PackageError: `target` exists and may not be replaced, or cannot be written.
    """
    absent: list[Path] = []
    complete = False
    # Named before it is made: an interrupt right after that must find it.
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial") if target.name else target
    try:
        _check(target, overwrite)
        absent = [folder for folder in target.parents if not folder.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            work.mkdir()
            yield work
            _replace(work, target)
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


def _check(target: Path, overwrite: bool) -> None:
    if target.name in ("", ".."):
        raise PackageError(f"{target} is no name for a package: choose another output")
    if target.is_symlink():
        raise PackageError(f"{target} is a symbolic link: name the directory itself")
    if not target.exists():
        return
    if not target.is_dir():
        raise PackageError(f"{target} exists and is not a directory: choose another output")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise PackageError(f"{target} exists and is not a package of ours (no {MANIFEST}): choose another output")
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
