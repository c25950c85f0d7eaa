from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_client import ANSWER, Served, events, refusal, serve


@pytest.fixture(scope="module")
def server(package_dir: Path) -> Iterator[Served]:
    with serve(package_dir) as served:
        yield served


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([64, 65, 66], ["abc"]),
        ([[64, 65], [66]], ["ab", "c"]),
    ],
)
def test_every_form_of_prompt(server: Served, prompt: Any, expected: list[str]) -> None:
    body = server.complete(prompt, max_tokens=5).json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert [choice["text"] for choice in body["choices"]] == ["Hello"] * len(expected)
    assert [choice["index"] for choice in body["choices"]] == list(range(len(expected)))
    requests = server.engine.requests[-len(expected) :]
    if prompt in ("ab", ["ab", "c"]):
        assert [server.tokenizer.decode(request.prompt) for request in requests] == expected
    else:
        assert [len(request.prompt) for request in requests] == [len(text) for text in expected]
    assert all(request.continues_text for request in requests)
    assert body["usage"]["prompt_tokens"] == sum(len(text) for text in expected)
    assert body["usage"]["completion_tokens"] == 5 * len(expected)


def test_the_answers_to_a_prompt_stand_together(server: Served) -> None:
    body = server.complete(["ab", "c"], n=2, max_tokens=1).json()
    assert len(body["choices"]) == 4
    prompts = [server.tokenizer.decode(request.prompt) for request in server.engine.requests[-4:]]
    assert prompts == ["ab", "ab", "c", "c"]
    assert body["usage"]["prompt_tokens"] == 3


def test_sixteen_tokens_by_default(server: Served) -> None:
    assert server.complete().json()["usage"]["completion_tokens"] == 16


def test_the_stream_gives_the_same_text(server: Served) -> None:
    chunks = events(server.complete(max_tokens=50, stream=True, stream_options={"include_usage": True}).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == ANSWER
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_completions(server: Served, stream: bool) -> None:
    response = server.complete(max_tokens=9, logprobs=2, stream=stream)
    if stream:
        parts = [chunk["choices"][0]["logprobs"] for chunk in events(response.text)]
        merged: dict[str, list[Any]] = {}
        for part in filter(None, parts):
            for name, values in part.items():
                merged.setdefault(name, []).extend(values)
    else:
        merged = response.json()["choices"][0]["logprobs"]
    assert merged["tokens"] == [*"Hello, w", "\ufffd"]
    assert merged["token_logprobs"] == [-0.25] * 9
    assert merged["top_logprobs"][0] == {"H": -0.25, "I": -1.25}
    assert merged["text_offset"] == list(range(9))


def test_harmless_forms_of_unsupported_fields(server: Served) -> None:
    response = server.complete(echo=False, suffix="", best_of=2, n=2, max_tokens=1, logit_bias=None, stop=None)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"echo": True}, "echo"), ({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of")],
)
def test_unsupported_fields_are_named(server: Served, fields: dict[str, Any], param: str) -> None:
    refusal(server.complete(**fields), 400, param, param=param)
