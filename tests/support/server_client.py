"""The server's application over the fake engine, and a client of it that needs no socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_engine import FakeEngine
from starlette.testclient import TestClient

from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.prompts import PromptEncoder
from bitnet_onnx.runtime.server.app import create_app
from bitnet_onnx.runtime.server.auth import ApiKeys
from bitnet_onnx.runtime.server.prompts import RequestPrompts
from bitnet_onnx.runtime.server.settings import ServerSettings
from bitnet_onnx.runtime.server.structured import PlanAnswer
from bitnet_onnx.runtime.tokenizer import TextTokenizer

ANSWER = "Hello, wörld! 🦊"
MODEL = "tiny"
KEY = "key-of-alice-1"
OTHER_KEY = "key-of-bob-22"


@dataclass(frozen=True)
class Served:
    """A running application."""

    engine: FakeEngine
    client: TestClient
    encoder: RequestPrompts
    tokenizer: TextTokenizer

    def chat(self, content: str = "hi", **fields: Any) -> Any:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]} | fields
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, prompt: Any = "Once", **fields: Any) -> Any:
        return self.client.post("/v1/completions", json={"model": MODEL, "prompt": prompt} | fields)


@contextmanager
def serve(
    package: Path,
    *,
    keys: tuple[str, ...] = (),
    plan_answer: PlanAnswer | None = None,
    step_s: float = 0.0,
    answer: str = ANSWER,
    endless: bool = False,
    **settings: Any,
) -> Iterator[Served]:
    """Serve `answer`, which ends with the token that ends a turn unless it is `endless`."""
    text_side = PromptEncoder(PackageInfo.open(package))
    tokenizer = text_side.tokenizer
    end = tokenizer.token_id("<|im_end|>")
    assert end is not None
    script = tokenizer.encode(answer, parse_special=False, add_bos=False) + ([] if endless else [end])
    encoder = RequestPrompts(text_side)
    with FakeEngine(script, tokenizer.decode, frozenset({end}), step_s) as engine:
        app = create_app(
            engine, encoder, ServerSettings(MODEL, **settings), keys=ApiKeys(keys), plan_answer=plan_answer
        )
        with TestClient(app, raise_server_exceptions=False) as client:
            yield Served(engine, client, encoder, tokenizer)


def events(text: str) -> list[Any]:
    """The JSON values of server-sent events; the end must be marked."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines), lines
    assert lines[-1] == "data: [DONE]", lines[-1]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def refusal(response: Any, status: int, *words: str, param: str | None = None) -> dict[str, Any]:
    """The error of a response, which must have OpenAI's form, the status, one line, and the words."""
    assert response.status_code == status, (response.status_code, response.text[:500])
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 500
    for word in words:
        assert word in error["message"], error["message"]
    if param is not None:
        assert error["param"] == param
    return error
