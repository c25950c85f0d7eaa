"""The other end of `_worker.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from bitnet_onnx.errors import BitnetOnnxError, InputError

_WORKER = Path(__file__).with_name("_worker.py")
#: The threads of the last worker spin for a moment after their answer.
_PAUSE_S = 0.02
_ERROR_LIMIT = 300


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to load.

    Attributes:
        name: of the candidate, in tables.
        kind: `package` (ours), `stock` (ours without the operator library) or `llama` (llama.cpp).
        path: the package, or the GGUF file.
        python: the interpreter that has what `kind` needs.
    """

    name: str
    kind: Literal["package", "stock", "llama"]
    path: Path
    python: str = sys.executable


class Worker:
    """A process with one loaded model. Leaving the `with` block ends it.

    Attributes:
        load_s: seconds to load the model, as the process sees it.
        first_token_s: seconds from the start of the process to the logits of a prompt of one token.

    Raises:
        BitnetOnnxError: the process ended before it answered, with its last words.
    """

    def __init__(self, job: Job, threads: int, context: int) -> None:
        self._job = job
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the process
        command = [job.python, "-P", str(_WORKER), job.kind, str(job.path), str(threads), str(context)]
        # A start that compiles its modules anew each time is not what an installation gives.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        try:
            self.load_s: float = self._answer()["load_s"]
        except BaseException:
            self._end()
            raise
        self.first_token_s = time.perf_counter() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def prefill(self, tokens: int) -> float:
        """Seconds of reading a prompt into an empty context."""
        time.sleep(_PAUSE_S)
        return float(self._ask(run="prefill", tokens=tokens)["seconds"])

    def decode(self, context: int, tokens: int) -> float:
        """Seconds of one step behind a context, the mean of `tokens` steps."""
        time.sleep(_PAUSE_S)
        return float(self._ask(run="decode", context=context, tokens=tokens)["seconds"]) / tokens

    def memory(self) -> dict[str, int | None]:
        """`peak_bytes` (resident, mapped weights included) and `anonymous_bytes`, which is None where unknown."""
        return self._ask(run="memory")

    def _ask(self, **request: str | int) -> dict[str, Any]:
        assert self._process.stdin is not None  # noqa: S101 -- opened as a pipe above
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 -- opened as a pipe above
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self) -> BitnetOnnxError:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
        last = lines[-1][:_ERROR_LIMIT] if lines else "no message"
        return BitnetOnnxError(f"{self._job.name}: its process ended with status {status}: {last}")

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        # Closes the pipes as well.
        self._process.communicate()
        self._errors.close()


def llama_version(python: str) -> str | None:
    """The version of llama-cpp-python that an interpreter has, or None.

    Raises:
        InputError: there is no such interpreter.
    """
    command = [python, "-P", "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"{python}: cannot be run: {error.strerror or error}; name a Python interpreter") from error
    return found.stdout.strip() if found.returncode == 0 else None
