"""Class 26: who reaches the server, and what a request can reach."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from server_client import KEY, OTHER_KEY, Served, listen, refusal, serve
from tiny_package import write_package

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.server import auth
from bitnet_onnx.runtime.server.auth import KEYS_VARIABLE, ApiKeys, read_keys
from bitnet_onnx.runtime.server.run import Listening


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("c26"))


@pytest.fixture(scope="module")
def local(package: Path) -> Iterator[Served]:
    with serve(package, require_local_host=True) as served:
        yield served


def test_only_this_machine_by_default() -> None:
    assert Listening().host == "127.0.0.1"
    for host, is_local in (
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("localhost.evil.example", False),
    ):
        assert Listening(host).is_local is is_local


def test_the_socket_is_known_to_be_tcp() -> None:
    """asyncio asks for that before it switches Nagle's algorithm off, which costs 40 ms a message."""
    with Listening(port=0).bind() as listener:
        assert listener.proto == socket.IPPROTO_TCP
        assert listener.getsockname()[0] == "127.0.0.1"
        with pytest.raises(InputError, match="cannot listen there"):
            Listening(port=listener.getsockname()[1]).bind()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_local_names_are_answered(local: Served, host: str) -> None:
    assert local.client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "::1x"],
)
def test_a_page_whose_name_was_turned_to_this_machine(local: Served, host: str) -> None:
    for path in ("/", "/v1/models", "/health"):
        refusal(local.client.get(path, headers={"Host": host}), 403, "--api-key-file")


def test_a_key_makes_the_name_irrelevant(package: Path) -> None:
    with serve(package, keys=(KEY,), require_local_host=True) as server:
        headers = {"Host": "models.example", "Authorization": f"Bearer {KEY}"}
        assert server.client.get("/v1/models", headers=headers).status_code == 200


def test_no_other_origin_is_invited(local: Served) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for response in (
        local.client.options("/v1/completions", headers=headers),
        local.client.get("/v1/models", headers=headers),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(len(a) == len(b) == 32)
        return hmac.compare_digest(a, b)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(auth, "hmac", Watched)
    keys = ApiKeys((KEY, OTHER_KEY, "third-key-of-all"))
    assert keys.tenant(f"Bearer {KEY}")
    assert keys.tenant("Bearer x") is None
    assert compared == [True] * 6  # hashes of equal length, and all of them each time


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/models/../../etc/passwd",
        "/v1/models/%2fetc%2fpasswd",
        "/static/page.html",
        "/page.html",
        "/model.onnx",
        "/docs",
        "/redoc",
    ],
)
def test_no_path_leads_to_a_file(local: Served, path: str) -> None:
    refusal(local.client.get(path), 404)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "\0"])
def test_a_model_is_a_name_and_no_path(local: Served, name: str) -> None:
    refusal(local.chat(model=name), 404, param="model")


def test_the_server_does_not_tell_what_it_is(package: Path) -> None:
    with listen(package) as server:
        response = httpx2.get(f"{server.url}/health")
    assert "server" not in response.headers


def test_an_unforeseen_failure_tells_nothing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(package) as server:

        def fail(request: object) -> object:
            raise RuntimeError("secret of /home/alice")

        monkeypatch.setattr(server.engine, "submit", fail)
        response = server.chat()
        assert refusal(response, 500)["message"] == "the server failed; its log tells why"


def write(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, f" {OTHER_KEY} ,")
    keys = read_keys(write(tmp_path, f"# alice\n{KEY}\n\n"))
    assert keys.tenant(f"Bearer {KEY}") != keys.tenant(f"bearer {OTHER_KEY}")
    assert None not in (keys.tenant(f"Bearer {KEY}"), keys.tenant(f"Bearer {OTHER_KEY}"))
    assert keys.tenant("Bearer # alice") is None
    monkeypatch.delenv(KEYS_VARIABLE)
    assert not read_keys(None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no API key"),
        ("# nothing\n", "holds no API key"),
        ("short\n", "API key 1 has 5 characters"),
        ("with a space in it\n", "without spaces"),
        ("k\u00e9yk\u00e9yk\u00e9y\n", "ASCII"),
        ("k" * 513, "512"),
        ("k" * (2**20 + 1), "larger than the limit"),
    ],
)
def test_key_files_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        read_keys(write(tmp_path, text))
    assert "\n" not in str(raised.value)
    assert text.strip() == "" or text.strip()[:9] not in str(raised.value)


def test_a_key_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "missing")
    (tmp_path / "bytes").write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match="not UTF-8"):
        read_keys(tmp_path / "bytes")


def test_a_key_file_that_others_can_read(tmp_path: Path, caplog: Any) -> None:
    path = write(tmp_path, KEY)
    read_keys(path)
    assert not caplog.records
    path.chmod(0o644)
    read_keys(path)
    if path.stat().st_mode & 0o044:  # Windows has no such bits
        assert "chmod 600" in caplog.text
