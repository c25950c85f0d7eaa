"""The `openai` package as it is, against a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from server_client import ANSWER, KEY, MODEL, Listening, listen

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(package_dir: Path) -> Iterator[Listening]:
    with listen(package_dir, keys=(KEY,)) as listening:
        yield listening


@pytest.fixture(scope="module")
def client(server: Listening) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "bitnet-onnx"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2, user="me")
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].bytes == [72]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens // 2
    # What came back can be sent again.
    more = [*MESSAGES, answer.choices[0].message, MESSAGES[0]]
    assert client.chat.completions.create(model=MODEL, messages=more).choices[0].message.content == ANSWER  # type: ignore[arg-type]  # the client takes its own objects


def test_a_stream_of_a_chat(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ANSWER.encode()) + 1


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=5, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["Hello", "Hello"]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == list("Hello")
    parts = client.completions.create(model=MODEL, prompt="a", max_tokens=5, stream=True)
    assert "".join(part.choices[0].text for part in parts) == "Hello"


def test_errors_become_the_clients_own(server: Listening, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)
    assert bad.value.param == "temperature"
    stranger = client.with_options(api_key="wrong-key")
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    server.engine.busy = True
    try:
        with pytest.raises(openai.RateLimitError) as busy:
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
    finally:
        server.engine.busy = False
    assert busy.value.response.headers["retry-after"] == "3"
