"""Signals that end a run at the next boundary of its steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP")


class StopRequest:
    """Whether a signal asked for an end, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Take note of SIGINT, SIGTERM and SIGHUP inside the block; the second one does what it did before.

    A signal that is ignored already stays so: `nohup` relies on that. Outside of the main thread nothing is done.
    """
    request = StopRequest()
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        if request.signal is not None:
            restore()
            signal.raise_signal(number)
        request.signal = request.signal or number

    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            # A handler that C code has set cannot be put back.
            if number is not None and signal.getsignal(number) not in {signal.SIG_IGN, None}:
                before[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
