"""One answer as its consumer sees it: events as they come, from any thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bitnet_onnx.runtime.engine.request import Event, Finished

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """All of one answer: `ids` holds the end token too, `text` neither that nor a stop string."""

    text: str
    ids: tuple[int, ...]
    finished: Finished


class AnswerStream(Iterator[Event]):
    """The events of one answer, for one consumer: tokens, and at last how it ended.

    The engine never waits for the consumer. Unread events are at most as many as the answer has tokens, and they are
    held by the stream alone: who drops it drops them.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._changed = threading.Condition()
        self._unread: deque[Event] = deque()
        self._callback: Callable[[Event], None] | None = None
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._finished: Finished | None = None
        self._exhausted = False

    @property
    def finished(self) -> Finished | None:
        """How the answer ended, once it has, whether or not that event was read."""
        return self._finished

    def __next__(self) -> Event:
        """The next event, waiting for it as long as it takes."""
        return self._next(None)

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """The events from here on.

        Raises:
            TimeoutError: from the iteration, when the next event takes longer than `timeout` seconds; the answer goes
                on, and the events may be asked for again.
        """
        while True:
            try:
                event = self._next(timeout)
            except StopIteration:
                return
            yield event

    def cancel(self) -> None:
        """Ends the answer within one step of the engine; an answer that has ended stays as it is."""
        if self._finished is None:
            self._cancel()

    def result(self, timeout: float | None = None) -> Answer:
        """All of the answer, read or unread, when it has ended.

        Raises:
            TimeoutError: it has not ended within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._finished is not None, timeout):
                raise TimeoutError(f"the answer has not ended within {timeout} s")
            assert self._finished is not None  # noqa: S101  # what was waited for
            return Answer("".join(self._pieces), tuple(self._ids), self._finished)

    def subscribe(self, callback: Callable[[Event], None]) -> None:
        """Hands every event to `callback` instead of to a reader; those unread so far at once, on this thread.

        Later ones come on the engine's thread, so the callback must return soon. One that raises is not called again,
        and the answer is cancelled.
        """
        with self._changed:
            self._callback = callback
            while self._unread:
                self._deliver(self._unread.popleft())

    def put(self, event: Event) -> None:
        """For the engine: one more event; nothing comes after `Finished`."""
        with self._changed:
            if self._finished is not None:
                return
            if isinstance(event, Finished):
                self._finished = event
            else:
                self._ids.append(event.id)
                self._pieces.append(event.text)
            if self._callback is None:
                self._unread.append(event)
            else:
                self._deliver(event)
            self._changed.notify_all()

    def _deliver(self, event: Event) -> None:
        if self._callback is None:
            return
        try:
            self._callback(event)
        except Exception:
            logger.exception("a subscriber failed; its answer is cancelled")
            self._callback = _discard
            self.cancel()

    def _next(self, timeout: float | None) -> Event:
        with self._changed:
            if self._exhausted or self._callback is not None:
                raise StopIteration
            if not self._changed.wait_for(lambda: bool(self._unread), timeout):
                raise TimeoutError(f"no token within {timeout} s")
            event = self._unread.popleft()
            self._exhausted = isinstance(event, Finished)
            return event


def _discard(event: Event) -> None:
    """Takes the place of a subscriber that failed."""
