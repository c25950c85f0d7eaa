"""Answers of the engine as asyncio sees them, and the response that streams events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from bitnet_onnx.runtime.engine.request import Event, Finished, TokenEvent
from bitnet_onnx.runtime.server._interfaces import AnswerStreamLike
from bitnet_onnx.runtime.server.errors import ApiError, as_api_error, dump_json

_Result = TypeVar("_Result")


@dataclass(slots=True)
class Answer:
    """One complete answer."""

    finished: Finished
    tokens: list[TokenEvent] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(token.text for token in self.tokens)


class Answers:
    """The answers to one request, for one consumer on one event loop; closing it cancels what has not ended."""

    def __init__(self, streams: Sequence[AnswerStreamLike]) -> None:
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._open = set(range(len(streams)))
        self._closed = False
        for index, stream in enumerate(streams):
            self._subscribe(index, stream)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Index of the answer and event, in the order of their arrival, to the end of all answers.

        Raises:
            ApiError: an answer failed or was cut off.
        """
        while self._open:
            index, event = await self._events.get()
            if isinstance(event, Finished):
                self._open.discard(index)
                _check_end(event)
            yield index, event

    async def complete(self) -> list[Answer]:
        """All answers in full.

        Raises:
            ApiError: an answer failed or was cut off.
        """
        tokens: list[list[TokenEvent]] = [[] for _ in self._streams]
        ends: dict[int, Finished] = {}
        async for index, event in self:
            if isinstance(event, Finished):
                ends[index] = event
            else:
                tokens[index].append(event)
        return [Answer(ends[index], tokens[index]) for index in range(len(self._streams))]

    def close(self) -> None:
        """Cancels every answer that has not ended."""
        self._closed = True
        for index in self._open:
            self._streams[index].cancel()

    def _subscribe(self, index: int, stream: AnswerStreamLike) -> None:
        def deliver(event: Event) -> None:
            if self._closed:
                return
            try:
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
            except RuntimeError:  # the loop has ended, and with it whoever wanted to know
                stream.cancel()

        stream.subscribe(deliver)


def _check_end(finished: Finished) -> None:
    if finished.reason == "error":
        error = finished.error
        raise as_api_error(error) if error is not None else ApiError(500, "the answer failed")
    if finished.reason == "cancelled":
        raise ApiError(503, "the server is shutting down", headers={"Retry-After": "5"})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_gone(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `work`, which is cancelled when the client goes away.

    Raises:
        ApiError: the client went away; nobody will read it.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client went away")
        return task.result()
    finally:
        await _end(task, gone)


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """Server-sent events, made until they end or the client goes away.

    Args:
        events: JSON values; an exception becomes one last event with an error.
        answers: closed at the end, whatever ends it.
        headers: more headers.
    """

    def __init__(self, events: AsyncGenerator[object], answers: Answers, headers: dict[str, str]) -> None:
        # Proxies are asked not to collect the stream.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._events = events
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # by protocol
        """Sends the stream."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self._answers.close()
            await _end(sending, gone)
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": _event(dump_json(event)), "more_body": True})
            await send({"type": "http.response.body", "body": _event(b"[DONE]"), "more_body": True})
        except ApiError as error:
            await send({"type": "http.response.body", "body": _event(dump_json(error.body())), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
