"""Load by locust in a process of its own, and what came of its requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np

from bitnet_onnx.errors import BitnetOnnxError, InputError

_USERS = Path(__file__).with_name("_users.py")
_RECORDS_VARIABLE = "BITNET_ONNX_LOAD_RECORDS"
#: Requests that run when the time is up are answered still.
_STOP_S = 120


@dataclass(frozen=True, slots=True)
class Record:
    """One request.

    Attributes:
        at: when it began, seconds since 1970.
        kind: of request.
        status: of the response; 0 when none was waited for.
        seconds: until its end.
        first_token_s: until the first token of a stream.
        failure: what was not as it should be.
    """

    at: float
    kind: str
    status: int
    seconds: float
    first_token_s: float | None
    failure: str | None

    @classmethod
    def read(cls, path: Path) -> list[Self]:
        """The records in a file of JSON lines."""
        return [cls(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def check_locust() -> None:
    """Find out before the server starts whether there will be a load.

    Raises:
        InputError: locust is not installed.
    """
    if find_spec("locust") is None:
        raise InputError("load tests need locust, which is not installed: pip install 'bitnet-onnx[bench]'")


def run_load(address: str, user: str, *, users: int, seconds: float) -> list[Record]:
    """Let `users` users of a class of `_users.py` ask for so long.

    Raises:
        InputError: locust is not installed.
        BitnetOnnxError: locust failed, with its last words, or sent nothing.
    """
    check_locust()
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "records.jsonl"
        records.touch()
        command = [
            *(sys.executable, "-P", "-m", "locust", "-f", str(_USERS), user, "--headless", "--host", address),
            *(
                "--users",
                str(users),
                "--spawn-rate",
                str(max(users / 2, 1)),
                "--run-time",
                f"{max(1, round(seconds))}s",
            ),
            *("--stop-timeout", str(_STOP_S), "--exit-code-on-error", "0", "--loglevel", "ERROR", "--only-summary"),
        ]
        environment = os.environ | {_RECORDS_VARIABLE: str(records)}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
        if ended.returncode:
            words = " ".join(ended.stderr.split())[-300:]
            raise BitnetOnnxError(f"locust ended with status {ended.returncode}: {words or 'no message'}")
        found = Record.read(records)
    if not found:
        raise BitnetOnnxError("locust sent no request in its time; give it longer")
    return found


def percentiles(values: Iterable[float]) -> dict[str, float] | None:
    """The middle and the tail; None: there are no values."""
    found = np.array(sorted(values))
    if not found.size:
        return None
    shares = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: float(np.percentile(found, share)) for name, share in shares.items()}


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Counts, failures and times by kind."""
    kinds: dict[str, Any] = {}
    for kind in sorted({record.kind for record in records}):
        of_kind = [record for record in records if record.kind == kind]
        kinds[kind] = {
            "requests": len(of_kind),
            "failures": sum(record.failure is not None for record in of_kind),
            "statuses": dict(sorted(Counter(str(record.status) for record in of_kind).items())),
            "seconds": percentiles(record.seconds for record in of_kind),
            "first_token_s": percentiles(r.first_token_s for r in of_kind if r.first_token_s is not None),
        }
    failures = Counter(record.failure for record in records if record.failure is not None)
    return {
        "requests": len(records),
        "failures": sum(failures.values()),
        "failure_messages": dict(failures.most_common(20)),
        "kinds": kinds,
    }
