"""`serve --ray`: what clients see of replicas behind Ray Serve is what they see of one server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ray_nodes import Nodes, kill, wait_until
from tiny_package import TinyShape, write_package

Command = Callable[..., subprocess.Popen[str]]
KEY = "key-of-alice-1"
HELLO = [{"role": "user", "content": "hello"}]
#: No token that ends an answer.
ENDLESS = {"logit_bias": {"256": -100, "257": -100, "258": -100}, "temperature": 0}


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    url: str

    def ask(self, path: str, body: object = None, key: str = KEY, **headers: str) -> Any:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"} | headers
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        method = "GET" if content is None else "POST"
        return httpx2.request(method, self.url + path, content=content, headers=headers, timeout=60)

    def complete(self, **fields: object) -> Any:
        return self.ask("/v1/completions", {"prompt": "Once", "max_tokens": 8, "temperature": 0} | fields)

    def stream(self, tokens: int) -> Any:
        body = {"prompt": "Once", "max_tokens": tokens, "stream": True} | ENDLESS
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx2.stream("POST", f"{self.url}/v1/completions", json=body, headers=headers, timeout=60)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Values of each replica by name."""
        found: dict[str, dict[str, float]] = {}
        for line in self.ask("/metrics").text.splitlines():
            match = re.fullmatch(r'(\w+)\{(.*?),?replica="(\w+)"\} (\S+)', line)
            if match:
                found.setdefault(match[3], {})[match[1] + match[2]] = float(match[4])
        return found


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("served"), TinyShape(context_length=8192))


@pytest.fixture(scope="module")
def start(start_command: Command, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)

    def call(*options: object) -> Server:
        process = start_command(
            *("serve", package, "--port", "0", "--model-name", "tiny", "--api-key-file", keys),
            *("--memory", "100MB", "--threads", "1", *options),
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"Serving {package} at http://127.0.0.1:"), process.communicate()
        return Server(process, line.split()[-1])

    return call


@pytest.fixture(scope="module")
def plain(start: Callable[..., Server]) -> Server:
    server = start()
    wait_until(lambda: _up(server))
    return server


def _up(server: Server) -> bool:
    try:
        return bool(server.ask("/health").status_code == 200)
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def on_ray(start: Callable[..., Server], nodes: Nodes) -> Iterator[Server]:
    server = start("--ray", "--ray-address", nodes.address, "--replicas", "2", "--drain", "20")
    assert server.process.stdout is not None
    assert server.process.stdout.readline() == "2 replicas, each with 1 thread and 100.0 MB for answers\n"
    yield server
    server.process.terminate()
    server.process.wait(timeout=60)


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "body", "more"),
    [
        (CHAT, {"messages": HELLO, "temperature": 0, "max_tokens": 20}, {}),
        (CHAT, {"messages": HELLO, "temperature": 0, "max_tokens": 20, "stream": True, "logprobs": True}, {}),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "seed": 3, "max_tokens": 20}, {}),
        (COMPLETIONS, {"prompt": "a", "seed": 3, "max_tokens": 20, "stream": True}, {}),
        (COMPLETIONS, {"prompt": "a", "temperature": -1}, {}),
        (COMPLETIONS, {"prompt": "a", "echo": True}, {}),
        (COMPLETIONS, {"prompt": "a", "model": "other"}, {}),
        (COMPLETIONS, {"prompt": "a"}, {"key": "key-of-nobody"}),
        (COMPLETIONS, b"{", {}),
        (COMPLETIONS, b'"' + b"a" * (5 << 20) + b'"', {}),
        (COMPLETIONS, {"prompt": "a"}, {"Content-Type": "text/plain"}),
        ("/v1/models", None, {}),
        ("/v1/models/tiny", None, {}),
        ("/v1/nothing", None, {}),
        ("/v1/models", {}, {}),
        ("/openapi.json", None, {}),
        ("/health", None, {"key": "none"}),
        ("/", None, {"key": "none"}),
    ],
)
def test_answers_and_errors_are_those_of_one_server(
    plain: Server, on_ray: Server, path: str, body: object, more: dict[str, str]
) -> None:
    expected, found = (server.ask(path, body, **more) for server in (plain, on_ray))
    assert found.status_code == expected.status_code
    # Names and times of answers.
    texts = [re.sub(r'"(id|created)":("\w+-\w+"|\d+)', "", response.text) for response in (expected, found)]
    assert texts[1] == texts[0]
    for name in ("content-type", "cache-control", "content-security-policy", "www-authenticate", "x-frame-options"):
        assert found.headers.get(name) == expected.headers.get(name)


def test_each_replica_has_its_metrics(on_ray: Server) -> None:
    wait_until(lambda: len(on_ray.metrics()) == 2)
    before = sum(replica["bitnet_onnx_generated_tokens_total"] for replica in on_ray.metrics().values())
    assert on_ray.complete(**ENDLESS).status_code == 200
    wait_until(
        lambda: (
            sum(replica["bitnet_onnx_generated_tokens_total"] for replica in on_ray.metrics().values()) == before + 8
        )
    )


def test_a_client_that_goes_away_frees_its_slot(on_ray: Server) -> None:
    def cancelled() -> float:
        name = 'bitnet_onnx_finished_totalreason="cancelled"'
        return sum(replica.get(name, 0) for replica in on_ray.metrics().values())

    before = cancelled()
    with on_ray.stream(8000) as response:
        next(response.iter_lines())
    wait_until(lambda: cancelled() == before + 1)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(
            f"{on_ray.url}/v1/completions",
            json={"prompt": "Once", "max_tokens": 8000, **ENDLESS},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=0.2,
        )
    wait_until(lambda: cancelled() == before + 2)


def test_a_second_server_on_the_cluster_is_refused(
    command: Command, nodes: Nodes, on_ray: Server, package: Path
) -> None:
    process = command("serve", package, "--port", "0", "--ray", "--ray-address", nodes.address, "--replicas", "2")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert "Ray Serve runs already on this cluster (applications: bitnet-onnx): end it with `serve shutdown`" in line


def test_a_replica_that_dies_is_replaced(on_ray: Server, nodes: Nodes) -> None:
    victims = nodes.workers("ServeReplica")
    assert len(victims) == 2
    expected = on_ray.complete().json()["choices"]
    kill(victims[0])
    # Whoever was on its way to the dead one may fail; the next one does not.
    wait_until(lambda: on_ray.complete().status_code == 200, 10)
    assert on_ray.complete().json()["choices"] == expected
    wait_until(lambda: len(set(nodes.workers("ServeReplica")) - set(victims)) == 1)
    assert on_ray.complete().json()["choices"] == expected


def test_running_answers_end_before_the_server_does(on_ray: Server, nodes: Nodes) -> None:
    lines: list[str] = []
    begun = threading.Event()

    def read() -> None:
        with on_ray.stream(1500) as response:
            for line in response.iter_lines():
                lines.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(30)
    on_ray.process.send_signal(signal.SIGTERM)
    out, err = on_ray.process.communicate(timeout=60)
    reader.join()
    assert (on_ray.process.returncode, out, err) == (0, "", "")
    tokens = [line for line in lines if line]
    assert tokens[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in tokens[-2]
    wait_until(lambda: not nodes.workers("Serve") and not nodes.workers("Proxy"))
