"""Class 22: requests that are too large, too deep, of wrong types, or out of every range."""

from __future__ import annotations

import json
import socket
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_client import Served, listen, refusal, serve
from tiny_package import edit_json, write_package

from bitnet_onnx.runtime.server.schemas import ChatRequest, CompletionRequest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("c22"))


@pytest.fixture(scope="module")
def server(package: Path) -> Iterator[Served]:
    with serve(package, max_body_bytes=100_000) as served:
        yield served


def post(server: Served, body: bytes, path: str = CHAT, **headers: str) -> Any:
    return server.client.post(path, content=body, headers=JSON | headers)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"[1]", "a JSON object is expected"),
        (b"{", "not JSON"),
        (b'{"messages": NaN}', "NaN is not JSON"),
        (b'{"temperature": Infinity}', "Infinity is not JSON"),
        (b'{"temperature": 1e999}', "beyond the range of a double"),
        (b'{"n": 1, "n": 2}', "appears twice"),
        (b'{"n": ' + b"9" * 5000 + b"}", "does not fit 64 bits"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nests deeper than 64"),
        (b'{"user": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", "nests deeper than 64"),
        (b'{"user": "\xff"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON"),
    ],
)
def test_what_is_no_json_object(server: Served, body: bytes, words: str) -> None:
    assert refusal(post(server, body), 400, words)["type"] == "invalid_request_error"


def test_a_body_above_the_limit(server: Served) -> None:
    big = json.dumps({"messages": [USER], "user": "x" * 100_000}).encode()
    response = post(server, big)
    refusal(response, 413, "100000 bytes")
    assert response.headers["connection"] == "close"
    # The length is a claim: what arrives counts.
    parts = iter([big[:50_000], big[50_000:]])
    refusal(server.client.post(CHAT, content=parts, headers=JSON), 413, "100000 bytes")
    refusal(post(server, b"{}", **{"Content-Length": "9" * 30}), 413)


def test_bodies_are_bounded_together(package: Path) -> None:
    with serve(package, max_bodies_bytes=5000) as server:
        response = post(server, json.dumps({"messages": [USER], "user": "x" * 6000}).encode())
        refusal(response, 429, "too many")
        assert response.headers["retry-after"] == "1"
        assert server.chat(max_tokens=1).status_code == 200  # what was refused is given back


def test_a_body_that_never_ends_arriving(package: Path) -> None:
    with listen(package, body_seconds=0.3) as server, socket.create_connection((server.host, server.port)) as slow:
        slow.settimeout(10)
        slow.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode())
        slow.sendall(b'Content-Length: 1000\r\n\r\n{"mess')
        started = time.monotonic()
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_other_content_types(server: Served, kind: str) -> None:
    # A foreign page can make a browser send these without asking.
    response = server.client.post(CHAT, content=b"{}", headers={"Content-Type": kind})
    refusal(response, 415, "application/json")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_tokens": 97}, "max_tokens"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": -3}, "n"),
        ({"n": 65}, "n"),
        ({"n": 2**62}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": [1]}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": {"a" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"seed": 0.5}, "seed"),
        ({"stop": ""}, "stop.0"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["x" * 257]}, "stop.0"),
        ({"stop": 1}, "stop"),
        ({"stop": ["\ud800"]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"model": 5}, "model"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"modalities": ["audio"]}, "modalities.0"),
        ({"tools": [{}] * 129}, "tools"),
        ({"tools": {}}, "tools"),
        ({"response_format": "json"}, "response_format"),
        ({"functions": []}, "functions"),
        ({"best_of": 2}, "best_of"),
        ({"\ud800": 1}, "\\ud800"),
        ({"x" * 3000: 1}, "x" * 80),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [USER] * 1025}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"user": {"a": ["\udfff"]}}, "user"),
        ({"messages": [{"role": "us er", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": "", "x": 1}]}, "messages.0.x"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "text"}] * 300}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x" * 97}]}, "messages"),
    ],
)
def test_fields_of_a_conversation(server: Served, fields: dict[str, Any], param: str | None) -> None:
    submitted = len(server.engine.requests)
    response = post(server, json.dumps({"messages": [USER]} | fields).encode())
    refusal(response, 400, param=param)
    assert len(server.engine.requests) == submitted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[1.5]]}, "prompt"),
        ({"prompt": [[None]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [259]}, "prompt"),
        ({"prompt": [2**63]}, "prompt"),
        ({"prompt": [1] * 97}, "prompt"),
        ({"prompt": "x" * 97}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": ["a"] * 65}, "n"),
        ({"prompt": ["a"] * 9, "n": 8}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_fields_of_a_completion(server: Served, fields: dict[str, Any], param: str) -> None:
    submitted = len(server.engine.requests)
    response = post(server, json.dumps({"prompt": "a"} | fields).encode(), TEXT)
    error = refusal(response, 400, param=param)
    assert len(server.engine.requests) == submitted
    if fields.get("prompt") in ([1] * 97, "x" * 97):
        assert error["code"] == "context_length_exceeded"


def test_an_empty_text_is_the_beginning_of_one(server: Served, tmp_path: Path) -> None:
    assert len(server.engine.requests[-1].prompt if server.complete("").status_code == 200 else ()) == 1
    edit_json(write_package(tmp_path) / "tokenizer_config.json", bos_token=None)
    with serve(tmp_path) as without:
        refusal(without.complete(""), 400, "the prompt is empty", param="prompt")


def test_the_longest_prompt_is_answered(server: Served) -> None:
    assert server.complete([1] * 96).json()["usage"]["completion_tokens"] == 1


def test_a_missing_field_is_named(server: Served) -> None:
    assert refusal(post(server, b"{}"), 400, param="messages")["code"] == "missing_field"
    assert refusal(post(server, b"{}", TEXT), 400, param="prompt")["code"] == "missing_field"


def test_a_large_wrong_body_costs_little(package: Path) -> None:
    """Validation that collects an error for each of a million elements takes a gigabyte."""
    bodies = [
        {"messages": [{}] * 1000},
        {"messages": [{str(index): 1 for index in range(60_000)}]},
        {"messages": [{"role": "user", "content": [{}] * 250_000}]},
        {"messages": [USER], "stop": [1] * 250_000},
        {"messages": [USER], "logit_bias": {str(index): "x" for index in range(60_000)}},
        {"messages": [USER], "stream_options": {str(index): 1 for index in range(60_000)}},
        {str(index): 1 for index in range(60_000)},
        {"messages": [USER], "tools": [1] * 250_000},
        {"messages": [USER], "modalities": [1] * 250_000},
        {"messages": [USER | {"tool_calls": [1] * 250_000}]},
        {"prompt": [1.5] * 200_000},
        {"prompt": [[]] * 250_000},
        {"prompt": [[1] * 250_000]},
        {"prompt": ["a"] * 200_000},
    ]
    with serve(package) as server:
        for body in bodies:
            data = json.dumps(body).encode()
            tracemalloc.start()
            started = time.process_time()
            response = post(server, data, TEXT if "prompt" in body else CHAT)
            seconds = time.process_time() - started
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            refusal(response, 400)
            assert seconds < 10, list(body)
            assert peak < 100e6, (list(body), peak)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, "echo", "user"}))


def test_no_body_makes_the_server_fail(package: Path) -> None:
    with serve(package) as server:

        @settings(max_examples=150)
        @given(st.dictionaries(names, values, max_size=4), st.sampled_from([CHAT, TEXT]))
        def check(fields: dict[str, Any], path: str) -> None:
            base: dict[str, Any] = {"messages": [USER]} if path == CHAT else {"prompt": "a"}
            response = post(server, json.dumps({"max_tokens": 2} | base | fields).encode(), path)
            assert response.status_code in (200, 400, 404), response.text

        check()
