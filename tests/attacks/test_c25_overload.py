"""Class 25: more than the server can do: refused with a time to come back, and health stays quick."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path

import httpx2
import pytest
from server_client import MODEL, listen, listen_real, refusal, serve
from tiny_package import write_package

from bitnet_onnx.runtime.engine.engine import EngineSettings

BODY = {"model": MODEL, "prompt": "a", "max_tokens": 20}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("c25"))


def test_a_full_queue(package: Path) -> None:
    with serve(package) as server:
        server.engine.busy = True
        for stream in (False, True):
            response = server.complete(stream=stream)
            error = refusal(response, 429, "queue is full")
            assert (error["type"], error["code"]) == ("rate_limit_error", "engine_busy")
            assert response.headers["retry-after"] == "3"


def test_several_answers_are_taken_together_or_not_at_all(package: Path) -> None:
    with listen_real(package, EngineSettings(max_batch=1, max_queue=2)) as (engine, server):
        response = httpx2.post(f"{server.url}/v1/completions", json=BODY | {"n": 60})
        refusal(response, 429)
        ends = time.monotonic() + 5
        while engine.metrics().running + engine.metrics().queue_length and time.monotonic() < ends:
            time.sleep(0.01)
        assert engine.metrics().finished["cancelled"] > 0
        assert httpx2.post(f"{server.url}/v1/completions", json=BODY).status_code == 200


async def _storm(url: str, count: int) -> tuple[list[int], int]:
    """Statuses of simultaneous requests, and how many health checks were answered meanwhile."""
    limits = httpx2.Limits(max_connections=None)
    answered = 0
    async with httpx2.AsyncClient(limits=limits, timeout=60) as client, httpx2.AsyncClient() as probe:
        await probe.get(f"{url}/health")
        requests = [asyncio.ensure_future(client.post(f"{url}/v1/completions", json=BODY)) for _ in range(count)]
        waiting = asyncio.gather(*requests)
        while not waiting.done():
            assert (await probe.get(f"{url}/health")).status_code == 200
            answered += 1
            await asyncio.sleep(0.02)
        return [response.status_code for response in await waiting], answered


def test_many_connections_are_all_answered(package: Path) -> None:
    with listen_real(package, EngineSettings(max_batch=8, max_queue=64)) as (engine, server):
        statuses, answered = asyncio.run(_storm(server.url, 200))
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) >= 64
        assert engine.metrics().finished["error"] == 0
        # A loop that is blocked answers nobody before the storm is over.
        assert answered > 1


def test_health_turns_red_when_the_engine_dies(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listen_real(package, EngineSettings()) as (engine, server):
        assert httpx2.get(f"{server.url}/health").status_code == 200

        def explode() -> bool:
            raise RuntimeError("boom")

        monkeypatch.setattr(engine, "step", explode)
        response = httpx2.post(f"{server.url}/v1/completions", json=BODY)
        assert response.status_code in (500, 503)
        assert httpx2.get(f"{server.url}/health").status_code == 503
        assert httpx2.post(f"{server.url}/v1/completions", json=BODY).status_code == 503
        assert "bitnet_onnx_healthy 0.0" in httpx2.get(f"{server.url}/metrics").text


def test_the_end_of_a_server_tells_its_clients(package: Path) -> None:
    with listen(package, endless=True, step_s=0.05, drain_seconds=0.2) as server:
        lines: list[str] = []

        def read() -> None:
            body = BODY | {"stream": True, "max_tokens": 90}
            with httpx2.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
                lines.extend(answer.iter_lines())

        reader = threading.Thread(target=read)
        reader.start()
        while not server.engine.running and reader.is_alive():
            time.sleep(0.01)
        started = time.monotonic()
        server.server.should_exit = True
        reader.join()
        assert time.monotonic() - started < 4
    error = json.loads([line for line in lines if line][-1].removeprefix("data: "))["error"]
    assert error["message"] == "the server is shutting down"


def test_what_runs_is_finished_before_the_end(package: Path) -> None:
    with listen(package, step_s=0.01, drain_seconds=10) as server:
        answers: list[str] = []
        reader = threading.Thread(
            target=lambda: answers.append(httpx2.post(f"{server.url}/v1/completions", json=BODY).text)
        )
        reader.start()
        while not server.engine.running and reader.is_alive():
            time.sleep(0.002)
        server.server.should_exit = True
        reader.join()
    assert json.loads(answers[0])["choices"][0]["finish_reason"] == "stop"
