"""What stands before every address: whose request it is, where it came from, and what every response says."""

from __future__ import annotations

import ipaddress
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitnet_onnx.runtime.server.auth import ApiKeys
from bitnet_onnx.runtime.server.errors import ApiError
from bitnet_onnx.runtime.server.prometheus import ServerMetrics
from bitnet_onnx.runtime.server.settings import ServerSettings

logger = logging.getLogger(__name__)

#: Open to all: whether the server lives, and the page, which holds nothing that is not in this repository.
_OPEN_PATHS = frozenset({"/", "/health"})
_COUNTED_PATHS = _OPEN_PATHS | {"/metrics", "/openapi.json", "/v1/models", "/v1/completions", "/v1/chat/completions"}


class Guard:
    """Middleware; sets `state.tenant` of each request that it lets through."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, settings: ServerSettings, metrics: ServerMetrics) -> None:
        self._app = app
        self._keys = keys
        self._require_local_host = settings.require_local_host and not keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 401 or 403."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("Referrer-Policy", "no-referrer")
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal.response()(scope, receive, watched)
            else:
                await self._app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in _COUNTED_PATHS else "other"
            self._metrics.count(path, status, time.perf_counter() - started)
            logger.debug("%s %s %d", scope["method"], path, status)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._require_local_host and not _is_local(headers.get("host", "")):
            return ApiError(
                403,
                "the Host of the request is not this machine; a server without API keys answers local names only: "
                "start it with --api-key-file to be reached by other names",
                code="host_not_allowed",
            )
        tenant = "" if scope["path"] in _OPEN_PATHS else self._keys.tenant(headers.get("authorization"))
        if tenant is None:
            return ApiError(
                401,
                "the API key is missing or wrong; send the header `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        scope.setdefault("state", {})["tenant"] = tenant
        return None


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
