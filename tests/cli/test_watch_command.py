"""`serve --watch` and `watch URL` on a terminal, and what they refuse."""

from __future__ import annotations

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

import httpx2
from server_client import KEY, listen
from tiny_package import write_package

from bitnet_onnx.cli import main
from bitnet_onnx.cli.watch import metrics_source
from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime.server.auth import KEYS_VARIABLE

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("watched") / "tiny"
    directory.mkdir()
    return write_package(directory)


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *arguments: str | Path, rows: int = 24, columns: int = 80) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self.output = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bitnet_onnx", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            self.output += data.decode(errors="replace")

    def wait_for(self, words: str, seconds: float = 60) -> None:
        ends = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < ends, self.text[-2000:]
            assert self.process.poll() is None, self.text[-2000:]
            time.sleep(0.05)

    @property
    def text(self) -> str:
        """What was written, without the sequences that move and colour."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.output)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        status = self.process.wait(30)
        self._reader.join(5)
        return status


@contextmanager
def terminal(*arguments: str | Path) -> Iterator[Terminal]:
    shown = Terminal(*arguments)
    try:
        yield shown
    finally:
        shown.process.kill()
        shown.process.wait()
        os.close(shown._master)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_served_and_watched_package(package: Path, number: signal.Signals) -> None:
    with terminal("serve", package, "--port", "0", "--threads", "1", "--watch") as shown:
        shown.wait_for("serving")
        match = re.search(r"at (http://127\.0\.0\.1:\d+)", shown.text)
        assert match is not None
        shown.wait_for("0 of 16")
        ends = time.monotonic() + 30
        while True:
            try:
                answer = httpx2.post(f"{match[1]}/v1/completions", json={"prompt": "a", "max_tokens": 7})
                break
            except httpx2.TransportError:
                assert time.monotonic() < ends
        assert answer.json()["usage"]["completion_tokens"] >= 1
        shown.wait_for("2xx 1")
        status = shown.end(number)
        # The screen that was there before comes back, cursor and all.
        assert shown.output.rindex("\x1b[?1049h") < shown.output.rindex("\x1b[?1049l")
        assert shown.output.rindex("\x1b[?25l") < shown.output.rindex("\x1b[?25h")
        assert status == 0


@posix
def test_a_server_elsewhere(package: Path) -> None:
    with listen(package, step_s=0.001) as server, terminal("watch", server.url) as shown:
        shown.wait_for("0 of 64")
        httpx2.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 3})
        shown.wait_for("length 1")
        assert shown.end(signal.SIGINT) == 0
        assert shown.output.rindex("\x1b[?1049h") < shown.output.rindex("\x1b[?1049l")
        assert "Traceback" not in shown.output


@posix
def test_a_server_that_goes_away_is_told(package: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(listen(package))
        with terminal("watch", server.url) as shown:
            shown.wait_for("serving")
            stack.close()
            shown.wait_for("no answer: 127.0.0.1")


@pytest.mark.parametrize("command", [["serve", "PACKAGE", "--watch"], ["watch", "http://127.0.0.1:9"]])
def test_without_a_terminal(package: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([str(package) if word == "PACKAGE" else word for word in command])
    assert raised.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("draws on a terminal, and stderr is none; read /metrics instead")


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://host", "http://", "http://[::1", "http://host:port", "http://h\u00f6st", "http://a\n"],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="expected the address of a server"):
        metrics_source(url)


@pytest.mark.parametrize("end", ["", "/", "/metrics"])
def test_a_source_reads_the_metrics(package: Path, end: str) -> None:
    with listen(package, keys=(KEY,)) as server:
        assert metrics_source(f"{server.url}{end}", KEY)().engine.max_batch == 64
        with pytest.raises(InputError, match="asks for an API key"):
            metrics_source(server.url)()


def test_the_key_of_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnet_onnx.runtime.server.auth import read_client_key

    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    assert read_client_key(None) is None
    monkeypatch.setenv(KEYS_VARIABLE, "key-of-bob-22,key-of-eve-33")
    assert read_client_key(None) == "key-of-bob-22"
    keys = tmp_path / "keys"
    keys.write_text("# mine\nkey-of-alice-1\n", encoding="utf-8")
    keys.chmod(0o600)
    assert read_client_key(keys) == "key-of-alice-1"
    keys.write_text("short\n", encoding="utf-8")
    with pytest.raises(InputError, match="5 characters"):
        read_client_key(keys)


@contextmanager
def answering(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _respond(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    try:
        handler.wfile.write(body)
    except OSError:  # the client has had enough
        handler.close_connection = True


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "not in the format"),
        (200, b"", "is missing"),
        (200, b"x" * 2**21, "larger than"),
        (404, b"", "status 404"),
        (302, b"", "status 302"),
    ],
)
def test_other_servers_are_told_apart(status: int, body: bytes, words: str) -> None:
    with (
        answering(lambda handler: _respond(handler, status, body, Location="http://127.0.0.1:9/")) as url,
        pytest.raises(BitnetOnnxError, match=words) as raised,
    ):
        metrics_source(url, KEY)()
    assert "\n" not in str(raised.value)


def test_nobody_there() -> None:
    with pytest.raises(BitnetOnnxError, match=r"127\.0\.0\.1:9: "):
        metrics_source("http://127.0.0.1:9")()
