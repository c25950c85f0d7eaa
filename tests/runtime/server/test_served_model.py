"""The server over the real engine: what it answers is what the model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from server_client import events, listen_real, refusal

from bitnet_onnx.runtime import Device, SamplingParameters, load
from bitnet_onnx.runtime.engine.engine import EngineSettings

HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("stream", [False, True])
def test_greedy_answers_are_the_models_own(package_dir: Path, stream: bool) -> None:
    model = load(package_dir, threads=1, device=Device())
    greedy = SamplingParameters(max_new_tokens=12)
    expected = model.generate("Once upon", greedy), model.generate(HELLO, greedy)
    with listen_real(package_dir, EngineSettings()) as (_, server):

        def ask(path: str, **fields: Any) -> str:
            body = {"max_tokens": 12, "temperature": 0, "stream": stream} | fields
            response = httpx2.post(f"{server.url}{path}", json=body)
            assert response.status_code == 200, response.text
            choices = [chunk["choices"][0] for chunk in events(response.text)] if stream else response.json()["choices"]
            return "".join(choice.get("text") or choice.get(kind, {}).get("content") or "" for choice in choices)

        kind = "delta" if stream else "message"
        assert ask("/v1/completions", prompt="Once upon") == expected[0].text
        assert ask("/v1/chat/completions", messages=HELLO) == expected[1].text


def test_a_seed_gives_the_same_answers_again(package_dir: Path) -> None:
    with listen_real(package_dir, EngineSettings()) as (_, server):

        def ask() -> list[str]:
            body = {"prompt": "a", "max_tokens": 20, "seed": 11, "n": 3, "temperature": 1.5}
            choices = httpx2.post(f"{server.url}/v1/completions", json=body).json()["choices"]
            return [choice["text"] for choice in choices]

        first = ask()
        assert ask() == first
        assert len(set(first)) == 3


def test_biases_and_penalties_work(package_dir: Path) -> None:
    with listen_real(package_dir, EngineSettings()) as (_, server):

        def tokens(**fields: Any) -> list[str]:
            body = {"prompt": "a", "max_tokens": 10, "temperature": 0, "logprobs": 0} | fields
            choices = httpx2.post(f"{server.url}/v1/completions", json=body).json()["choices"]
            found: list[str] = choices[0]["logprobs"]["tokens"]
            return found

        assert tokens(logit_bias={"65": 100}) == ["b"] * 10
        spread = tokens(logit_bias={str(token): 50 for token in range(64, 74)}, presence_penalty=2, frequency_penalty=2)
        assert set(spread) <= set("abcdefghij")


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_keeps_to_its_schema(package_dir: Path, stream: bool) -> None:
    with listen_real(package_dir, EngineSettings()) as (_, server):

        def ask(**format_: Any) -> Any:
            body = {"messages": HELLO, "stream": stream, "response_format": format_, "temperature": 0}
            return httpx2.post(f"{server.url}/v1/chat/completions", json=body)

        response = ask(type="json_schema", json_schema={"name": "place", "schema": SCHEMA})
        if stream:
            choices = [chunk["choices"][0] for chunk in events(response.text)]
            content = "".join(choice["delta"].get("content", "") for choice in choices)
        else:
            choices = response.json()["choices"]
            content = choices[0]["message"]["content"]
        place = json.loads(content)
        assert place["city"] in ("Oslo", "Rome")
        assert isinstance(place["big"], bool)
        assert choices[-1]["finish_reason"] == "stop"
        wrong = {"$ref": "#"}
        refusal(ask(type="json_schema", json_schema={"name": "x", "schema": wrong}), 400, param="response_format")
        refusal(ask(type="grammar"), 400, param="response_format")


def test_a_template_without_tools_is_said_so(package_dir: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    with listen_real(package_dir, EngineSettings()) as (_, server):
        body = {"messages": HELLO, "tools": tools}
        response = httpx2.post(f"{server.url}/v1/chat/completions", json=body)
        refusal(response, 400, "chat template", param="tools")


def test_the_metrics_of_the_real_engine(package_dir: Path) -> None:
    with listen_real(package_dir, EngineSettings()) as (engine, server):
        assert httpx2.post(f"{server.url}/v1/completions", json={"prompt": "abc", "max_tokens": 4}).status_code == 200
        text = httpx2.get(f"{server.url}/metrics").text
        generated = engine.metrics().generated_tokens
    assert f"bitnet_onnx_generated_tokens_total {float(generated)}\n" in text
    assert "bitnet_onnx_prefilled_tokens_total 3.0\n" in text
    assert 'bitnet_onnx_memory_bytes{owner="' in text
    assert "bitnet_onnx_memory_fragmentation_ratio" in text
    assert "bitnet_onnx_first_token_seconds_count 1.0" in text
