from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_client import ANSWER, MODEL, Served, events, refusal, serve

from bitnet_onnx.errors import BitnetOnnxError


@pytest.fixture(scope="module")
def server(package_dir: Path) -> Iterator[Served]:
    with serve(package_dir) as served:
        yield served


def test_a_conversation_is_answered(server: Served) -> None:
    response = server.chat("hi", temperature=0)
    body = response.json()
    assert response.status_code == 200, body
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert body["id"].startswith("chatcmpl-")
    assert response.headers["x-request-id"] == body["id"]
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    tokens = len(ANSWER.encode()) + 1
    usage = body["usage"]
    assert usage["completion_tokens"] == tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + tokens
    assert usage["prompt_tokens_details"] == {"cached_tokens": usage["prompt_tokens"] // 2}
    assert usage["prompt_tokens"] == len(server.engine.requests[-1].prompt)


def test_the_stream_gives_the_same_text_in_pieces(server: Served) -> None:
    response = server.chat(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks = events(response.text)
    assert {chunk["id"] for chunk in chunks} == {response.headers["x-request-id"]}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]]
    assert "".join(pieces) == ANSWER
    assert sum(map(bool, pieces)) > 10
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-3:-1]] == [None, "stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_without_the_option_no_chunk_has_usage(server: Served) -> None:
    assert all("usage" not in chunk for chunk in events(server.chat(stream=True).text))


def test_several_answers_have_seeds_of_their_own(server: Served) -> None:
    body = server.chat(n=3, seed=7, max_tokens=4).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length"] * 3
    assert [request.parameters.seed for request in server.engine.requests[-3:]] == [7, 8, 9]
    assert body["usage"]["completion_tokens"] == 12
    assert body["usage"]["prompt_tokens"] == len(server.engine.requests[-1].prompt)
    chunks = events(server.chat(n=3, max_tokens=4, stream=True).text)
    texts = ["", "", ""]
    for chunk in chunks:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [ANSWER[:4]] * 3


def test_every_parameter_reaches_the_engine(server: Served) -> None:
    response = server.chat(
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"3": 5, "4": -1.5},
        max_completion_tokens=9,
        seed=-1,
        stop=["wör", "x"],
    )
    assert response.json()["choices"][0]["message"]["content"] == "Hello, w"  # the ninth byte is half of the ö
    parameters = server.engine.requests[-1].parameters
    assert parameters.temperature == 0.5
    assert parameters.top_p == 0.25
    assert parameters.top_k == 3
    assert parameters.min_p == 0.125
    assert parameters.repetition_penalty == 1.5
    assert parameters.presence_penalty == 0.5
    assert parameters.frequency_penalty == -0.5
    assert parameters.logit_bias == ((3, 5), (4, -1.5))
    assert parameters.max_new_tokens == 9
    assert parameters.seed == 2**63 - 1
    assert parameters.stop == ("wör", "x")


def test_defaults_are_those_of_openai(server: Served) -> None:
    assert server.chat().status_code == 200
    request = server.engine.requests[-1]
    assert (request.parameters.temperature, request.parameters.top_p) == (1, 1)
    assert request.parameters.max_new_tokens == server.encoder.context_length - len(request.prompt)
    assert request.top_logprobs is None
    assert not request.continues_text


def test_a_stop_string_ends_the_answer_before_it(server: Served) -> None:
    choice = server.chat(stop="wör").json()["choices"][0]
    assert choice["message"]["content"] == "Hello, "
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server: Served, stream: bool) -> None:
    response = server.chat(logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        parts = [chunk["choices"][0]["logprobs"] for chunk in events(response.text)]
        entries = [entry for part in parts if part for entry in part["content"]]
    else:
        entries = response.json()["choices"][0]["logprobs"]["content"]
    assert len(entries) == len(ANSWER.encode()) + 1
    first = entries[0]
    assert (first["token"], first["logprob"], first["bytes"]) == ("H", -0.25, [72])
    assert [top["token"] for top in first["top_logprobs"]] == ["H", "I"]
    half = next(entry for entry in entries if "\ufffd" in entry["token"])
    assert half["bytes"] is None


def test_messages_as_clients_write_them(server: Served) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "d"},
    ]
    response = server.client.post("/v1/chat/completions", json={"messages": messages, "user": "me", "store": False})
    assert response.status_code == 200, response.text
    text = server.tokenizer.decode(server.engine.requests[-1].prompt)
    assert text == "system\nBe brief.\nuser\na\nb\nassistant\nc\nuser\nd\nassistant\n"


def test_control_tokens_in_a_message_are_text(server: Served) -> None:
    assert server.chat("<|im_end|>").status_code == 200
    end = server.tokenizer.token_id("<|im_end|>")
    plain = len([token for token in server.engine.requests[-1].prompt if token == end])
    assert plain == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ],
)
def test_what_cannot_be_enforced_is_refused(server: Served, fields: dict[str, Any], param: str) -> None:
    refusal(server.chat(**fields), 400, "cannot enforce", param=param)


def test_a_failed_answer_fails_alone(package_dir: Path) -> None:
    with serve(package_dir) as server:
        server.engine.error = BitnetOnnxError("the largest logit is nan")
        assert refusal(server.chat(), 500, "largest logit")["type"] == "server_error"
        stream = server.chat(stream=True)
        assert stream.status_code == 200
        assert "largest logit is nan" in stream.text.split("\n\n")[-2]
        assert "[DONE]" not in stream.text
        server.engine.error = None
        assert server.chat().status_code == 200
