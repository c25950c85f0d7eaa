"""A directory or a file that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
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
    try:
        check()
        absent = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            # mkdtemp makes it private; a package is as readable as any other directory.
            work.chmod(0o755)
            yield work
            complete = True
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise PackageError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        for folder in () if complete else absent:
            with suppress(OSError):
                folder.rmdir()


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
    retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    try:
        target.rename(retired / "package")
        work.rename(target)
    finally:
        # An interrupt between the two must not cost the old package either.
        if not target.exists():
            (retired / "package").rename(target)
        shutil.rmtree(retired, ignore_errors=True)
