"""Errors in the form that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime.engine.request import EngineBusyError

logger = logging.getLogger(__name__)

_MAX_MESSAGE = 500
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer of another status than 200.

    Args:
        status: of HTTP.
        message: one line for the user.
        param: the field of the request that it is about.
        code: a word for programs.
        headers: more headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """The JSON object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = " ".join(str(self).split())[:_MAX_MESSAGE]
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        return json_response(self.body(), self.status, self.headers)


class FieldError(ApiError):
    """400: a field of the request is wrong."""

    def __init__(self, param: str | None, message: str, code: str | None = None) -> None:
        super().__init__(400, message if param is None else f"{param}: {message}", param=param, code=code)


def dump_json(value: object) -> bytes:
    """JSON in ASCII: a lone surrogate that a message quotes can be sent too."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response whose body is JSON."""
    return Response(dump_json(value), status, dict(headers or {}), "application/json")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an exception; the text of an unforeseen one stays here."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineBusyError):
        seconds = max(1, math.ceil(error.retry_after_s))
        return ApiError(429, str(error), code="engine_busy", headers={"Retry-After": str(seconds)})
    if isinstance(error, InputError):
        return ApiError(400, str(error))
    if isinstance(error, BitnetOnnxError):
        return ApiError(500, str(error))
    return ApiError(500, "the server failed; its log tells why")


def handle_errors(app: FastAPI) -> None:
    """Give every error of the app OpenAI's form."""

    async def foreseen(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def unforeseen(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return as_api_error(error).response()

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return as_api_error(error).response()
        message = error.detail
        if error.status_code == 404:
            message = f"no such address: {request.method} {request.url.path!r:.100}"
        elif error.status_code == 405:
            message = f"{request.method} is not for {request.url.path}"
        return ApiError(error.status_code, message, headers=error.headers).response()

    app.add_exception_handler(ApiError, foreseen)
    app.add_exception_handler(BitnetOnnxError, foreseen)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unforeseen)
