"""Where output goes: results to stdout, everything else to stderr."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

error_console = Console(stderr=True)


def setup_logging(level: int) -> None:
    """Send the package's log to stderr."""
    handler = RichHandler(console=error_console, show_path=False, show_time=False, markup=False)
    logger = logging.getLogger("bitnet_onnx")
    logger.handlers = [handler]
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
