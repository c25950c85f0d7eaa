"""A directory that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitnet_onnx.errors import PackageError

#: The file that makes a directory a package of ours.
MANIFEST = "bitnet_onnx.json"


@contextmanager
def new_directory(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary directory beside `target` and rename it to `target` when the block succeeds.

    Whatever ends the block otherwise, an interrupt included, removes the temporary directory. An existing package is
    replaced only with `overwrite`, and anything that is not a package of ours never is.

    Raises:
        PackageError: `target` exists and may not be replaced, or cannot be written.
    """
    _check(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise PackageError(f"{target}: cannot be written: {error.strerror}") from error
    try:
        # mkdtemp makes it private; a package is as readable as any other directory.
        work.chmod(0o755)
        yield work
        _replace(work, target)
    except OSError as error:
        raise PackageError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check(target: Path, overwrite: bool) -> None:
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
    target.rename(retired / "package")
    try:
        work.rename(target)
    except OSError:
        (retired / "package").rename(target)
        raise
    finally:
        shutil.rmtree(retired, ignore_errors=True)
