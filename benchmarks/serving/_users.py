"""The users of a load test, for locust, which gives every one a greenlet: `locust -f _users.py MixedUser`.

locust has patched sockets and sleep to let the others run meanwhile. Each request becomes one line of JSON in the file
that BITNET_ONNX_LOAD_RECORDS names.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import time
from dataclasses import asdict, dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

from locust import User, task

from bitnet_onnx.benchmarks.serving import _requests
from bitnet_onnx.benchmarks.serving._requests import Request

RECORDS_VARIABLE = "BITNET_ONNX_LOAD_RECORDS"
_TIMEOUT_S = 300
_numbers = itertools.count()
_records = open(os.environ[RECORDS_VARIABLE], "a", encoding="utf-8", buffering=1)  # noqa: PTH123, SIM115 -- until the end


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a request, as in `_load.Record`."""

    status: int = 0
    first_token_s: float | None = None
    failure: str | None = None
    retry_after_s: float | None = None


class _Client(User):
    """One connection that is kept, as clients keep theirs."""

    abstract = True

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._random = Random(next(_numbers))  # noqa: S311 -- a choice of requests
        address = urlsplit(str(self.host))
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_S)

    def _ask(self, request: Request) -> None:
        """Sends a request, checks the answer and records both; nothing that goes wrong ends the user."""
        at, started = time.time(), time.perf_counter()
        try:
            outcome = self._exchange(request)
        except (OSError, http.client.HTTPException) as error:
            outcome = _Outcome(failure=f"{type(error).__name__}: {error}")
        if outcome.failure is not None:
            self._connection.close()
        seconds = time.perf_counter() - started
        record = {"at": at, "kind": request.kind, "seconds": seconds, **asdict(outcome)}
        del record["retry_after_s"]
        _records.write(json.dumps(record) + "\n")
        self.environment.events.request.fire(
            request_type="POST",
            name=request.kind,
            response_time=1000 * seconds,
            response_length=0,
            exception=None if outcome.failure is None else RuntimeError(outcome.failure),
            context={},
        )
        if outcome.retry_after_s is not None:
            # As clients do: all at the same moment would be refused again.
            time.sleep(outcome.retry_after_s * self._random.uniform(1, 2))

    def _exchange(self, request: Request) -> _Outcome:
        started = time.perf_counter()
        self._connection.request("POST", request.path, request.body, {"Content-Type": request.content_type})
        if request.ending == "leave at once":
            time.sleep(self._random.uniform(0, 0.3))
            self._connection.close()
            return _Outcome()
        response = self._connection.getresponse()
        if response.status != 200 or not request.streams:
            body = response.read()
            failure = _requests.fault(request, response.status, body)
            retry = float(response.getheader("Retry-After", "1")) if response.status == 429 else None
            return _Outcome(response.status, None, failure, retry)
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
                return _Outcome(response.status, first)
        return _Outcome(response.status, first, _requests.stream_fault(lines))


class MixedUser(_Client):
    """Everything that clients do, with pauses."""

    @task
    def ask(self) -> None:
        """One request, and a pause."""
        self._ask(_requests.mixed(self._random))
        time.sleep(self._random.uniform(0, 0.5))


class CrowdUser(_Client):
    """The same short request again and again."""

    @task
    def ask(self) -> None:
        """One request."""
        self._ask(_requests.simple(self._random))
