"""What all processes of one run of pytest share: made by the first that asks for it, while the others wait."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock


def _root(factory: pytest.TempPathFactory) -> Path:
    """A folder of this run; pytest-xdist gives each of its processes one inside it."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def alone(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """While it lasts no other process of this run is in it under the same name; gives the path of that name."""
    path = _root(factory) / name
    with FileLock(path.with_suffix(".lock")):
        yield path


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The file or folder `name` of this run, as `make` has written it; where that failed, the next process tries."""
    with alone(factory, name) as path:
        if not path.exists():
            part = path.with_suffix(".part")
            make(part)
            part.rename(path)
    return path
