"""One run at a time in a directory."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from bitnet_onnx.errors import InputError

logger = logging.getLogger(__name__)

LOCK: Final = ".lock"
_TAKEN: Final = frozenset({errno.EACCES, errno.EAGAIN, errno.EDEADLK})


@contextmanager
def run_lock(output: Path) -> Iterator[None]:
    """Hold a run's directory; the system lets go of it when this process ends, however it does.

    Where the file system has no locks, a warning is all.

    Raises:
        InputError: another process holds it.
    """
    # The file stays: who removes it could remove the one that the next run has locked.
    with (output / LOCK).open("a+b") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in _TAKEN:
                raise InputError(
                    f"{output}: another run is at work there; wait for its end, or give another output"
                ) from None
            logger.warning("%s: no lock (%s): start no other run there", output, error.strerror)
        yield


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
