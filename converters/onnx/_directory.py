"""A directory that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
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
    try:
        _check(target, overwrite)
        absent = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            # mkdtemp makes it private; a package is as readable as any other directory.
            work.chmod(0o755)
            yield work
            _replace(work, target)
            complete = True
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise PackageError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        for folder in () if complete else absent:
            with suppress(OSError):
                folder.rmdir()


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
    retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    try:
        target.rename(retired / "package")
        work.rename(target)
    finally:
        # An interrupt between the two must not cost the old package either.
        if not target.exists():
            (retired / "package").rename(target)
        shutil.rmtree(retired, ignore_errors=True)
