from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_client import KEY, MODEL, OTHER_KEY, Served, events, refusal, serve
from tiny_package import edit_json

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.engine.tool_calls import ContentDelta, Delta, ToolCallDelta
from bitnet_onnx.runtime.server.prompts import RequestPrompts
from bitnet_onnx.runtime.server.schemas import IGNORED_FIELDS
from bitnet_onnx.runtime.server.settings import ServerSettings


@pytest.fixture(scope="module")
def server(package_dir: Path) -> Iterator[Served]:
    with serve(package_dir) as served:
        yield served


def test_the_model_is_listed(server: Served) -> None:
    body = server.client.get("/v1/models").json()
    assert [model["id"] for model in body["data"]] == [MODEL]
    assert server.client.get(f"/v1/models/{MODEL}").json() == body["data"][0]
    error = refusal(server.client.get("/v1/models/other"), 404, "'other'", "'tiny'")
    assert (error["code"], error["type"]) == ("model_not_found", "not_found_error")
    refusal(server.chat(model="gpt-4"), 404, "'gpt-4'", param="model")
    refusal(server.complete(model="gpt-4"), 404, "'gpt-4'", param="model")


def test_unknown_addresses_and_methods(server: Served) -> None:
    refusal(server.client.get("/v1/nothing"), 404, "/v1/nothing")
    refusal(server.client.get("/v1/completions"), 405, "GET")


def test_ignored_fields_are_ignored(server: Served) -> None:
    assert server.chat(**dict.fromkeys(IGNORED_FIELDS, "x"), max_tokens=1).status_code == 200


def test_the_health_of_a_dead_engine(package_dir: Path) -> None:
    with serve(package_dir) as server:
        assert server.client.get("/health").json() == {"status": "ok"}
        server.engine.close()
        response = server.client.get("/health")
        assert (response.status_code, response.json()) == (503, {"status": "failed"})
        refusal(server.chat(), 503, "restart the server")
        assert "bitnet_onnx_healthy 0.0" in server.client.get("/metrics").text


def test_metrics(package_dir: Path) -> None:
    with serve(package_dir) as server:
        server.chat(max_tokens=3)
        server.complete(n=0)
        response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(re.findall(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", response.text, re.MULTILINE))
    assert values["bitnet_onnx_healthy"] == "1.0"
    assert values["bitnet_onnx_generated_tokens_total"] == "3.0"
    assert values['bitnet_onnx_finished_total{reason="length"}'] == "1.0"
    assert values['bitnet_onnx_first_token_seconds_bucket{le="0.025"}'] == "1.0"
    assert values['bitnet_onnx_first_token_seconds_bucket{le="0.01"}'] == "0.0"
    assert values["bitnet_onnx_memory_budget_bytes"] == "1000.0"
    assert values['bitnet_onnx_http_responses_total{path="/v1/completions",status="400"}'] == "1.0"


def test_two_servers_in_one_process_count_apart(package_dir: Path) -> None:
    with serve(package_dir) as first, serve(package_dir) as second:
        first.chat(max_tokens=1)
        assert "bitnet_onnx_submitted_total 1.0" in first.client.get("/metrics").text
        assert "bitnet_onnx_submitted_total 0.0" in second.client.get("/metrics").text


def test_keys_open_everything_but_health_and_the_page(package_dir: Path) -> None:
    with serve(package_dir, keys=(KEY, OTHER_KEY)) as server:
        for path in ("/", "/health"):
            assert server.client.get(path).status_code == 200
        for path in ("/metrics", "/v1/models", "/openapi.json", "/nothing"):
            error = refusal(server.client.get(path), 401, "Authorization")
            assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
        for wrong in (f"Bearer {KEY}x", f"Basic {KEY}", "Bearer", f"Bearer {KEY[:-1]}", KEY, "Bearer \u00ff"):
            response = server.client.get("/v1/models", headers={"Authorization": wrong.encode("latin-1")})
            refusal(response, 401)
        for key in (KEY, OTHER_KEY):
            server.client.headers["Authorization"] = f"Bearer {key}"
            assert server.chat(max_tokens=1).status_code == 200
    tenants = [request.tenant for request in server.engine.requests]
    assert len(set(tenants)) == 2
    assert not any(key in tenant for key in (KEY, OTHER_KEY) for tenant in tenants)


def test_a_package_without_a_chat_template(fresh_package: Path) -> None:
    edit_json(fresh_package / "tokenizer_config.json", chat_template=None)
    (fresh_package / "chat_template.jinja").unlink(missing_ok=True)
    with serve(fresh_package) as server:
        assert refusal(server.chat(), 400, "/v1/completions", param="messages")["code"] == "no_chat_template"
        assert server.complete().status_code == 200


def test_the_openapi_document_is_complete(server: Served) -> None:
    document = server.client.get("/openapi.json").json()
    assert "$ref" not in str(document["paths"])
    assert document["paths"]["/v1/models/{name}"]["get"]["parameters"][0]["in"] == "path"
    for path in ("/v1/chat/completions", "/v1/completions"):
        operation = document["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema["additionalProperties"] is False
        assert {"400", "401", "413", "429", "503"} <= set(operation["responses"])


def test_the_page_may_load_nothing(server: Served) -> None:
    response = server.client.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'")
    assert "unsafe" not in policy
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2
    assert response.headers["x-frame-options"] == "DENY"
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\(\s*[\"']?http", response.text)
    assert " style=" not in response.text
    assert not re.search(r"\son[a-z]+=", response.text)


def test_every_response_forbids_guessing(server: Served) -> None:
    for path in ("/", "/health", "/v1/models", "/nothing"):
        assert server.client.get(path).headers["x-content-type-options"] == "nosniff"


def test_health_answers_while_prompts_are_read(package_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode_slowly(self: RequestPrompts, text: str) -> tuple[int, ...]:
        time.sleep(1.5)
        return (1, 2)

    monkeypatch.setattr(RequestPrompts, "text", encode_slowly)
    with serve(package_dir) as server:
        busy = [threading.Thread(target=server.complete, kwargs={"max_tokens": 2}) for _ in range(2)]
        for thread in busy:
            thread.start()
        slowest = 0.0
        while any(thread.is_alive() for thread in busy):
            started = time.perf_counter()
            assert server.client.get("/health").status_code == 200
            slowest = max(slowest, time.perf_counter() - started)
        assert slowest < 1.2


class Parser:
    """Makes a call of whatever stands behind an exclamation mark."""

    def __init__(self) -> None:
        self.text = ""

    def push(self, text: str, token: int | None = None) -> list[Delta]:
        if self.text or text == "!":
            self.text += text
            return []
        return [ContentDelta(text)]

    def finish(self) -> list[Delta]:
        return [ToolCallDelta(0, "call_1", "say", f'{{"text": "{self.text}"}}')] if self.text else []


class Plan:
    """A plan that remembers what it was made from."""

    template_tools = None

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        if fields["tool_choice"] == "required" and not fields["tools"]:
            raise InputError("tool_choice is required, but there are no tools")

    def constraint(self) -> Any:
        if "json_schema" in (self.fields["response_format"] or {}):
            raise InputError("response_format.json_schema: `$ref` cycles are not supported")
        return self

    def parser(self) -> Parser | None:
        return Parser() if self.fields["tools"] else None


TOOLS = [{"type": "function", "function": {"name": "say", "parameters": {"type": "object"}}}]


def test_forms_reach_whoever_enforces_them(package_dir: Path) -> None:
    with serve(package_dir, plan_answer=Plan, answer="Ho") as server:
        assert server.chat(response_format={"type": "json_object"}, n=2).status_code == 200
        for request in server.engine.requests:
            assert isinstance(request.constraint, Plan)
            assert request.constraint.fields["response_format"] == {"type": "json_object"}
            assert request.constraint.fields["parallel_tool_calls"] is True
        assert server.chat(response_format={"type": "text"}, tools=[], tool_choice="none").status_code == 200
        assert server.engine.requests[-1].constraint is None
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
        refusal(server.chat(response_format=schema), 400, "cycles", param="response_format")
        refusal(server.chat(tool_choice="required"), 400, "no tools", param="tool_choice")
        assert server.engine.running == 0


def test_calls_of_tools_are_told_in_openais_form(package_dir: Path) -> None:
    with serve(package_dir, plan_answer=Plan, answer="Ho!ho") as server:
        [choice] = server.chat(tools=TOOLS).json()["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Ho"
        [call] = choice["message"]["tool_calls"]
        assert call == {"id": "call_1", "type": "function", "function": {"name": "say", "arguments": '{"text": "!ho"}'}}
        chunks = [chunk["choices"][0] for chunk in events(server.chat(tools=TOOLS, stream=True).text)]
        assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "Ho"
        assert [chunk["delta"]["tool_calls"] for chunk in chunks if "tool_calls" in chunk["delta"]] == [
            [{"index": 0, **call}]
        ]
        assert chunks[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_name": ""}, "name"),
        ({"model_name": "a\nb"}, "name"),
        ({"max_body_bytes": 10}, "10 bytes"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ServerSettings(**({"model_name": "m"} | changes))
