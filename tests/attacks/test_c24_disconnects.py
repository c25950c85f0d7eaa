"""Class 24: a client that goes away frees its slot."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from server_client import Address, listen, listen_real
from tiny_package import write_package

from bitnet_onnx.runtime.engine.engine import EngineSettings


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("c24"))


def ask(server: Address, path: str = "/v1/completions", **fields: object) -> socket.socket:
    """A request whose answer is not read yet."""
    body = json.dumps({"prompt": "a", "max_tokens": 90} | fields).encode()
    connection = socket.create_connection((server.host, server.port), timeout=10)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


def first_event(connection: socket.socket) -> None:
    """Reads until the stream has begun."""
    answer = b""
    while b"data: " not in answer:
        part = connection.recv(4096)
        assert part, answer
        answer += part


def soon(condition: Callable[[], bool]) -> bool:
    ends = time.monotonic() + 5
    while not condition() and time.monotonic() < ends:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize("stream", [True, False])
def test_while_it_is_answered(package: Path, stream: bool) -> None:
    with listen(package, endless=True, step_s=0.02) as server:
        with ask(server, stream=stream, n=3) as connection:
            if stream:
                first_event(connection)
            assert soon(lambda: server.engine.running == 3)
        assert soon(lambda: server.engine.ended == ["cancelled"] * 3)


@pytest.mark.parametrize("stream", [True, False])
def test_while_it_waits_for_its_first_token(package: Path, stream: bool) -> None:
    with listen(package, endless=True) as server:
        server.engine.going.clear()
        with ask(server, stream=stream):
            assert soon(lambda: server.engine.running == 1)
        assert soon(lambda: server.engine.ended == ["cancelled"])


def test_while_it_sends_its_request(package: Path) -> None:
    with listen(package) as server:
        with socket.create_connection((server.host, server.port)) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
            connection.sendall(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        with ask(server) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert len(server.engine.requests) == 1


def test_others_go_on(package: Path) -> None:
    with listen(package, step_s=0.01) as server, ask(server, stream=True) as staying:
        with ask(server, stream=True) as leaving:
            first_event(leaving)
        answer = b""
        while b"[DONE]" not in answer:
            answer += staying.recv(4096)
        assert soon(lambda: sorted(server.engine.ended) == ["cancelled", "stop"])


def test_the_real_engine_frees_its_slot(package: Path) -> None:
    with listen_real(package, EngineSettings(max_batch=1)) as (engine, server):
        for _ in range(3):
            with ask(server, stream=True) as connection:
                first_event(connection)
        assert soon(lambda: engine.metrics().running == 0)
        with ask(server, max_tokens=1) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
