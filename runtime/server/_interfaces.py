"""What the server needs of the engine below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bitnet_onnx.runtime.engine.metrics import EngineMetrics
from bitnet_onnx.runtime.engine.request import EngineRequest, Event


class AnswerStreamLike(Protocol):
    """The events of one answer."""

    def subscribe(self, callback: Callable[[Event], None]) -> None:
        """Hands every event to `callback`: past ones at once, later ones on the engine's thread."""
        ...

    def cancel(self) -> None:
        """Ends the answer within one step; returns at once, from any thread."""
        ...


class EngineLike(Protocol):
    """Takes requests from any thread."""

    @property
    def healthy(self) -> bool:
        """False when its thread has died."""
        ...

    def submit(self, request: EngineRequest) -> AnswerStreamLike:
        """Queues a request.

        Raises:
            EngineBusyError: the queue is full.
            InputError: the prompt cannot be answered.
        """
        ...

    def metrics(self) -> EngineMetrics:
        """What it has counted so far."""
        ...
