"""Where output goes: results to stdout, everything else to stderr.

rich is imported with the first line for stderr: a command that has none starts sooner.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@lru_cache(maxsize=1)
def error_console() -> Console:
    """The one console on stderr."""
    from rich.console import Console

    return Console(stderr=True)


class _LogHandler(logging.Handler):
    """Writes records the way rich does."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.logging import RichHandler

        RichHandler(console=error_console(), show_path=False, show_time=False, markup=False).emit(record)


def setup_logging(level: int) -> None:
    """Send the package's log to stderr."""
    logger = logging.getLogger("bitnet_onnx")
    logger.handlers = [_LogHandler()]
    logger.setLevel(level)
    logger.propagate = False


def printable(text: str) -> str:
    """Text out of a foreign file or path with its control characters escaped: a terminal must not obey them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def size(count: float) -> str:
    """A number of bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
