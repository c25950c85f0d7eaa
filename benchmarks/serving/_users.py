"""The users of a load test, for locust, which gives every one a greenlet: `locust -f _users.py MixedUser`.

Each request becomes one line of JSON in the file that BITNET_ONNX_LOAD_RECORDS names.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import time
from random import Random
from urllib.parse import urlsplit

import gevent
from locust import User, events, task

from bitnet_onnx.benchmarks.serving import _requests
from bitnet_onnx.benchmarks.serving._requests import Request

RECORDS_VARIABLE = "BITNET_ONNX_LOAD_RECORDS"
_TIMEOUT_S = 300
_numbers = itertools.count()
_records = open(os.environ[RECORDS_VARIABLE], "a", encoding="utf-8", buffering=1)  # noqa: PTH123, SIM115 -- until the end


class _Client(User):
    """One connection that is kept, as clients keep theirs."""

    abstract = True

    def __init__(self, environment: object) -> None:
        super().__init__(environment)
        self._random = Random(next(_numbers))  # noqa: S311 -- a choice of requests
        address = urlsplit(self.host)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_S)

    def _ask(self, request: Request) -> None:
        """Sends a request, checks the answer and records both; nothing that goes wrong ends the user."""
        started = time.time()
        record = {"at": started, "kind": request.kind, "status": 0, "first_token_s": None, "failure": None}
        try:
            record |= self._exchange(request)
        except (OSError, http.client.HTTPException) as error:
            record["failure"] = f"{type(error).__name__}: {error}"
        if record["failure"] is not None:
            self._connection.close()
        record["seconds"] = time.time() - started
        _records.write(json.dumps(record) + "\n")
        events.request.fire(
            request_type="POST",
            name=request.kind,
            response_time=1000 * record["seconds"],
            response_length=0,
            exception=None if record["failure"] is None else RuntimeError(record["failure"]),
            context={},
        )
        if record["status"] == 429:
            gevent.sleep(1)

    def _exchange(self, request: Request) -> dict[str, object]:
        started = time.perf_counter()
        self._connection.request("POST", request.path, request.body, {"Content-Type": request.content_type})
        if request.ending == "leave at once":
            gevent.sleep(self._random.uniform(0, 0.3))
            self._connection.close()
            return {}
        response = self._connection.getresponse()
        if response.status != 200 or not request.streams:
            body = response.read()
            return {"status": response.status, "failure": _requests.fault(request, response.status, body)}
        lines: list[bytes] = []
        first: float | None = None
        most = self._random.randint(1, 40) if request.ending == "leave in the stream" else None
        while line := response.readline():
            lines.append(line.strip())
            # The first event of a chat tells the role, before there is a token.
            if first is None and line.startswith(b"data: ") and b'"role"' not in line:
                first = time.perf_counter() - started
            if most is not None and len(lines) > most:
                self._connection.close()
                return {"status": response.status, "first_token_s": first}
        return {"status": response.status, "first_token_s": first, "failure": _requests.stream_fault(lines)}


class MixedUser(_Client):
    """Everything that clients do, with pauses."""

    @task
    def ask(self) -> None:
        """One request, and a pause."""
        self._ask(_requests.mixed(self._random))
        gevent.sleep(self._random.uniform(0, 0.5))


class CrowdUser(_Client):
    """The same short request again and again."""

    @task
    def ask(self) -> None:
        """One request."""
        self._ask(_requests.simple(self._random))
