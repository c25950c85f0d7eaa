"""Class 27: what one user asks is never visible to another."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from server_client import KEY, OTHER_KEY, listen_real, serve
from tiny_package import write_package

from bitnet_onnx.runtime.engine.engine import EngineSettings

SECRET = "swordfish " * 7


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("c27"))


def test_a_prompt_read_for_one_key_is_not_cached_for_another(package: Path) -> None:
    """Not even whether somebody else has asked the same can be seen: neither in the usage nor in the time."""
    settings = EngineSettings(prompt_cache_block=8)
    with listen_real(package, settings, keys=(KEY, OTHER_KEY)) as (engine, server):

        def cached(key: str) -> int:
            response = httpx2.post(
                f"{server.url}/v1/completions",
                json={"prompt": SECRET, "max_tokens": 1},
                headers={"Authorization": f"Bearer {key}"},
            )
            count: int = response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            return count

        assert cached(KEY) == 0
        assert cached(KEY) >= 56
        before = engine.metrics().prefilled_tokens
        assert cached(OTHER_KEY) == 0
        assert engine.metrics().prefilled_tokens - before == len(SECRET)
        assert cached(OTHER_KEY) >= 56


def test_a_tenant_comes_from_the_key_and_from_nothing_else(package: Path) -> None:
    with serve(package, keys=(KEY, OTHER_KEY)) as server:
        for key in (KEY, OTHER_KEY):
            headers = {"Authorization": f"Bearer {key}", "X-Tenant": "other", "OpenAI-Organization": "other"}
            body = {"prompt": "a", "max_tokens": 1, "user": KEY, "prompt_cache_key": KEY, "safety_identifier": KEY}
            assert server.client.post("/v1/completions", json=body, headers=headers).status_code == 200
        one, other = [request.tenant for request in server.engine.requests]
        assert one != other


def test_metrics_and_errors_hold_no_prompt(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serve(package) as server, caplog.at_level("DEBUG", logger="bitnet_onnx"):
        server.complete(SECRET, max_tokens=1)
        server.chat(SECRET, max_tokens=1)
        server.complete(SECRET * 2)
        server.chat(SECRET * 2)
        shown = server.client.get("/metrics").text + caplog.text
        server.client.get(f"/v1/{SECRET}")
        shown += server.client.get("/metrics").text
    assert "swordfish" not in shown
