"""Reading request bodies: bounded in size, in sum, in time and in depth."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from bitnet_onnx.errors import InputError
from bitnet_onnx.json_input import load_object
from bitnet_onnx.runtime.server.errors import ApiError, FieldError
from bitnet_onnx.runtime.server.settings import ServerSettings


class BodyReader:
    """Reads bodies and counts the bytes held by all of them; for one event loop."""

    def __init__(self, settings: ServerSettings) -> None:
        self._limit = settings.max_body_bytes
        self._sum_limit = settings.max_bodies_bytes
        self._seconds = settings.body_seconds
        self._held = 0

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[bytes]:
        """The body, which counts until the block ends.

        Raises:
            ApiError: 408, 413, 415 or 429.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps foreign web pages out: a browser asks before it sends this type to another origin.
            raise ApiError(415, "the header Content-Type must be application/json", code="content_type")
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > self._limit):
            raise self._too_large()
        taken = 0
        parts: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    async for part in request.stream():
                        taken += len(part)
                        self._held += len(part)
                        if taken > self._limit:
                            raise self._too_large()
                        if self._held > self._sum_limit:
                            raise ApiError(
                                429, "too many requests at a time", code="engine_busy", headers={"Retry-After": "1"}
                            )
                        parts.append(part)
            except TimeoutError:
                raise ApiError(
                    408, f"the body did not arrive within {self._seconds:.0f} s", headers={"Connection": "close"}
                ) from None
            except ClientDisconnect:
                raise ApiError(400, "the client went away") from None
            yield b"".join(parts)
        finally:
            self._held -= taken

    def _too_large(self) -> ApiError:
        # The rest of the body is not read, so the connection is of no more use.
        return ApiError(
            413,
            f"the body exceeds the limit of {self._limit} bytes",
            code="body_too_large",
            headers={"Connection": "close"},
        )


def parse_body(body: bytes, settings: ServerSettings) -> dict[str, object]:
    """The JSON object of a body.

    Raises:
        ApiError: 400.
    """
    try:
        fields = load_object(body, "the body", max_bytes=settings.max_body_bytes)
    except InputError as error:
        raise ApiError(400, str(error), code="invalid_json") from None
    if b"\\ud" in body or b"\\uD" in body:
        _refuse_surrogates(fields)
    return fields


def _refuse_surrogates(fields: dict[str, object]) -> None:
    """Half a pair of surrogates is JSON, but no text that could be encoded."""
    for name, value in fields.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise FieldError(ascii(name[:80])[1:-1], "holds a lone surrogate, which is not valid Unicode") from None
