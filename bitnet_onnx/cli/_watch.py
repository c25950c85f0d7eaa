"""The live view: asks a source each second and draws, until the block ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from bitnet_onnx.cli._console import error_console, printable
from bitnet_onnx.cli._watch_view import View, Watched
from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime.server.snapshot import ServerSnapshot

_EVERY_S = 1.0


def check_terminal(option: str) -> None:
    """Refuses a view that nobody could see.

    Raises:
        InputError: stderr is no terminal, or one that cannot move its cursor.
    """
    console = error_console()
    if not console.is_terminal or console.is_dumb_terminal:
        raise InputError(f"{option} draws on a terminal, and stderr is none; read /metrics instead")


@contextmanager
def drawing(
    watched: Watched,
    source: Callable[[], ServerSnapshot],
    ending: Callable[[], bool] = lambda: False,
    *,
    every_s: float = _EVERY_S,
) -> Iterator[None]:
    """Draws on the alternate screen of the terminal, in a thread, while the block runs.

    What is logged meanwhile is shown as messages, and again on the ordinary screen at the end.

    Args:
        watched: what is drawn.
        source: asked for snapshots; its errors are shown.
        ending: tells that the server is on its way down.
        every_s: seconds from picture to picture.
    """
    stop = threading.Event()
    console = error_console()
    with _caught_log(watched, console), _live(watched, console) as live:

        def run() -> None:
            while True:
                _look(watched, source, ending)
                live.refresh()
                if stop.wait(every_s):
                    return

        thread = threading.Thread(target=run, name="bitnet-onnx watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _live(watched: Watched, console: Console) -> Live:
    return Live(
        View(watched),
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _look(watched: Watched, source: Callable[[], ServerSnapshot], ending: Callable[[], bool]) -> None:
    try:
        watched.history.add(time.monotonic(), source())
    except BitnetOnnxError as error:
        watched.state, watched.detail = "no answer", printable(str(error))
    else:
        watched.state, watched.detail = "ending" if ending() else "serving", ""


class _MessageHandler(logging.Handler):
    """Keeps lines for the view."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self._watched = watched

    def emit(self, record: logging.LogRecord) -> None:
        message = printable(" ".join(record.getMessage().split()))
        self._watched.messages.append(f"{time.strftime('%H:%M:%S')} {record.levelname.lower()}: {message}")


@contextmanager
def _caught_log(watched: Watched, console: Console) -> Iterator[None]:
    # In place: the log of uvicorn goes through the same list.
    handlers = logging.getLogger("bitnet_onnx").handlers
    before = list(handlers)
    handlers[:] = [_MessageHandler(watched)]
    try:
        yield
    finally:
        handlers[:] = before
        for message in watched.messages:
            console.print(message, markup=False, highlight=False, soft_wrap=True)
