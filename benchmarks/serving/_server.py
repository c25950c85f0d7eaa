"""A server as its own process, what it says of itself and what the system says of it, second by second."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from bitnet_onnx.errors import BitnetOnnxError

_START_S = 120.0
_END_S = 60.0
_SAMPLE = re.compile(r"^(bitnet_onnx_[a-z_]+) (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment.

    Attributes:
        at: seconds since 1970.
        resident_bytes: of the process; 0 where the system does not tell.
        anonymous_bytes: of these, what no file stands behind.
        metrics: samples of `/metrics` without labels, by name without the prefix; empty when it did not answer.
    """

    at: float
    resident_bytes: int
    anonymous_bytes: int
    metrics: dict[str, float]


class ServerProcess:
    """`bitnet-onnx serve` on a free port; leaving the `with` block ends it.

    Attributes:
        address: where it listens.

    Raises:
        BitnetOnnxError: it did not start, with its last words.
    """

    def __init__(self, package: Path, *options: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the process
        command = [sys.executable, "-P", "-m", "bitnet_onnx", "serve", str(package), "--port", "0", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        try:
            assert self._process.stdout is not None  # noqa: S101 -- opened as a pipe above
            line = self._process.stdout.readline()
            if not line:
                raise BitnetOnnxError(f"the server did not start: {self.errors()[-300:] or 'no message'}")
            self.address = line.split()[-1]
            self._wait_until_up()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, and forgets what it said."""
        self.end()
        self._errors.close()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def connect(self) -> http.client.HTTPConnection:
        """A connection to it."""
        address = urlsplit(self.address)
        return http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)

    def sample(self) -> Sample:
        """What it is doing now."""
        resident, anonymous = _memory(self._process.pid)
        metrics: dict[str, float] = {}
        connection = self.connect()
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            metrics = {name.removeprefix("bitnet_onnx_"): float(value) for name, value in _SAMPLE.findall(text)}
        except (OSError, http.client.HTTPException):
            pass  # told by the missing sample
        finally:
            connection.close()
        return Sample(time.time(), resident, anonymous, metrics)

    def errors(self) -> str:
        """What it has said on stderr."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def end(self) -> int:
        """Asks it to end, and insists after a while; returns its status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.returncode

    def _wait_until_up(self) -> None:
        ends = time.monotonic() + _START_S
        while True:
            connection = self.connect()
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            if not self.alive or time.monotonic() > ends:
                raise BitnetOnnxError(f"the server did not answer: {self.errors()[-300:] or 'no message'}")
            time.sleep(0.1)


class _Watcher:
    """Looks at a server again and again, in a thread, until the `with` block ends."""

    def __init__(self, server: ServerProcess, every_s: float) -> None:
        self._server = server
        self._every_s = every_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        raise NotImplementedError


class Sampler(_Watcher):
    """Samples a server each second, in a thread, until the `with` block ends.

    Attributes:
        samples: so far.
    """

    def __init__(self, server: ServerProcess, every_s: float = 1.0) -> None:
        super().__init__(server, every_s)
        self.samples: list[Sample] = []

    def _run(self) -> None:
        while True:
            self.samples.append(self._server.sample())
            if self._ending.wait(self._every_s - time.time() % self._every_s):
                return


class HealthProbe(_Watcher):
    """Asks for `/health` over a connection of its own, in a thread, until the `with` block ends.

    Attributes:
        seconds: of each answer.
        failures: what was no answer with status 200.
    """

    def __init__(self, server: ServerProcess, every_s: float = 0.05) -> None:
        super().__init__(server, every_s)
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def _run(self) -> None:
        connection = self._server.connect()
        while not self._ending.wait(self._every_s):
            started = time.perf_counter()
            try:
                connection.request("GET", "/health")
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    self.failures.append(f"status {response.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                connection.close()
            self.seconds.append(time.perf_counter() - started)
        connection.close()


def _memory(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes of a process; 0 where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0, 0
    found = dict(re.findall(r"^(Rss|Anonymous):\s+(\d+) kB$", text, re.MULTILINE))
    return 1024 * int(found.get("Rss", 0)), 1024 * int(found.get("Anonymous", 0))
