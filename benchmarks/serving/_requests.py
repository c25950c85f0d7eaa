"""What the clients of a load test ask, and what a right answer to it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

#: How a client ends its request: reads all of it, leaves in the middle of the stream, or leaves before the first byte.
Ending = Literal["read", "leave in the stream", "leave at once"]

_WORDS = (
    *("river", "stone", "window", "yellow", "quiet", "engine", "garden", "paper", "morning", "number", "slowly"),
    *("bridge", "copper", "letter", "under", "forest", "simple", "market", "travel", "winter", "almost", "circle"),
    *("island", "future", "gentle", "silver", "people", "answer", "between", "harbour", "question"),
)
_SHARED = "You are a careful assistant of a small library. " + " ".join(_WORDS * 8)
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request and what is expected of its answer.

    Attributes:
        kind: its name in the results.
        path: where it goes.
        body: what is sent.
        statuses: that are right.
        ending: what the client does.
        content_type: of the body.
        is_json: whether a finished answer must be an object of the schema.
    """

    kind: str
    path: str
    body: bytes
    statuses: frozenset[int] = frozenset({200})
    ending: Ending = "read"
    content_type: str = "application/json"
    is_json: bool = False

    @property
    def streams(self) -> bool:
        """Whether the answer comes in pieces."""
        return b'"stream": true' in self.body


def mixed(random: Random) -> Request:
    """One of everything that clients do, bad requests included."""
    makers = list(_MIX)
    return random.choices(makers, [_MIX[maker] for maker in makers])[0](random)


def simple(random: Random) -> Request:
    """A short completion, which may be refused while the server is busy."""
    body = {"prompt": _text(random, 8), "max_tokens": 16, "stream": random.random() < 0.5}
    return _completion("simple", body, statuses=frozenset({200, 429}))


def _chat_short(random: Random) -> Request:
    return _chat("chat", [_user(_text(random, 12))], random, max_tokens=random.randint(8, 64))


def _chat_stream(random: Random) -> Request:
    return _chat("chat, stream", [_user(_text(random, 12))], random, max_tokens=random.randint(8, 96), stream=True)


def _chat_shared(random: Random) -> Request:
    messages = [{"role": "system", "content": _SHARED}, _user(_text(random, 20))]
    return _chat("chat, shared prompt, stream", messages, random, max_tokens=48, stream=True)


def _chat_long(random: Random) -> Request:
    return _chat("chat, long prompt", [_user(_text(random, random.randint(200, 400)))], random, max_tokens=24)


def _chat_schema(random: Random) -> Request:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": _SCHEMA, "strict": True}}
    messages = [_user("Name a city and how many people live there. " + _text(random, 3))]
    return _chat("chat, JSON schema", messages, random, max_tokens=64, response_format=form, is_json=True)


def _completion_short(random: Random) -> Request:
    return _completion("completion", {"prompt": _text(random, 10), "max_tokens": random.randint(4, 48)})


def _completion_long(random: Random) -> Request:
    body = {"prompt": _text(random, 10), "max_tokens": 200, "stream": True, "seed": random.randint(0, 99)}
    return _completion("completion, long answer, stream", body)


def _completion_many(random: Random) -> Request:
    body = {"prompt": [_text(random, 6), _text(random, 9)], "n": 2, "max_tokens": 12, "logprobs": 3}
    return _completion("completion, several answers with logprobs", body)


def _left_in_stream(random: Random) -> Request:
    messages = [_user(_text(random, 30))]
    return _chat("left in the stream", messages, random, max_tokens=200, stream=True, ending="leave in the stream")


def _left_at_once(random: Random) -> Request:
    messages = [_user(_text(random, 150))]
    return _chat("left at once", messages, random, max_tokens=200, ending="leave at once")


def _bad(random: Random) -> Request:
    chat, completion = "/v1/chat/completions", "/v1/completions"
    long_prompt = " ".join(["stone"] * 20_000)
    path, body, status = random.choice(
        (
            (chat, b'{"messages": [', 400),
            (chat, b'{"messages": []}', 400),
            (chat, _json(messages=[_user("hi")], temperature=3), 400),
            (chat, _json(messages=[_user("hi")], unknown_field=1), 400),
            (chat, _json(messages=[_user("hi")], response_format={"type": "no such form"}), 400),
            (completion, _json(prompt="hi", model="another-model"), 404),
            (completion, _json(prompt=[10**9]), 400),
            (completion, _json(prompt=long_prompt), 400),
            (completion, _json(prompt="hi", n=1000), 400),
            ("/v1/nothing", b"{}", 404),
        )
    )
    if random.random() < 0.1:
        return Request("bad request", path, body, frozenset({415, 404}), content_type="text/plain")
    return Request("bad request", path, body, frozenset({status}))


#: Shares of the kinds.
_MIX: Mapping[Callable[[Random], Request], int] = {
    _chat_short: 3,
    _chat_stream: 4,
    _chat_shared: 3,
    _chat_long: 2,
    _chat_schema: 2,
    _completion_short: 3,
    _completion_long: 2,
    _completion_many: 1,
    _left_in_stream: 2,
    _left_at_once: 1,
    _bad: 2,
}


def _chat(
    kind: str,
    messages: list[dict[str, str]],
    random: Random,
    *,
    max_tokens: int,
    stream: bool = False,
    response_format: dict[str, Any] | None = None,
    ending: Ending = "read",
    is_json: bool = False,
) -> Request:
    body = {"messages": messages, "max_tokens": max_tokens, "temperature": random.choice((0, 0.7)), "stream": stream}
    if response_format is not None:
        body["response_format"] = response_format
    return Request(kind, "/v1/chat/completions", _json(**body), ending=ending, is_json=is_json)


def _completion(kind: str, body: dict[str, Any], statuses: frozenset[int] = frozenset({200})) -> Request:
    return Request(kind, "/v1/completions", _json(**body), statuses)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _text(random: Random, words: int) -> str:
    return " ".join(random.choices(_WORDS, k=words)).capitalize() + "."


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def fault(request: Request, status: int, body: bytes) -> str | None:
    """What is wrong with a whole answer; None: nothing."""
    if status not in request.statuses:
        return f"status {status}: {body[:200].decode(errors='replace')}"
    try:
        answer = json.loads(body)
        if status != 200:
            return None if isinstance(answer["error"]["message"], str) else "an error of another form"
        for choice in answer["choices"]:
            if choice["finish_reason"] not in ("stop", "length"):
                return f"finish_reason is {choice['finish_reason']!r}"
            if request.is_json and choice["finish_reason"] == "stop":
                value = json.loads(choice["message"]["content"])
                if set(value) != {"city", "people"} or not isinstance(value["people"], int):
                    return "the answer is not of the schema"
        return None if answer["usage"]["completion_tokens"] > 0 else "no tokens"
    except (ValueError, LookupError, TypeError) as error:
        return f"an answer of another form: {type(error).__name__} {error}"


def stream_fault(lines: list[bytes]) -> str | None:
    """What is wrong with the lines of a stream that was read to its end; None: nothing."""
    data = [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]
    if not data or data[-1] != b"[DONE]":
        return f"the stream ended with {data[-1][:200] if data else b''!r}"
    try:
        pieces = [json.loads(line) for line in data[:-1]]
        if any("error" in piece for piece in pieces):
            return f"an error in the stream: {data[-2][:200]!r}"
        ends = [choice["finish_reason"] for piece in pieces for choice in piece["choices"] if choice["finish_reason"]]
    except (ValueError, LookupError, TypeError) as error:
        return f"a piece of another form: {type(error).__name__} {error}"
    return None if ends in (["stop"], ["length"]) else f"the ends of the stream are {ends}"
