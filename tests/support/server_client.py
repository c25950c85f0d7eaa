"""The server's application over the fake engine, and a client of it that needs no socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_engine import FakeEngine
from fastapi import FastAPI
from starlette.testclient import TestClient

from bitnet_onnx.runtime import Device
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.prompts import PromptEncoder
from bitnet_onnx.runtime.server.app import create_app
from bitnet_onnx.runtime.server.auth import ApiKeys
from bitnet_onnx.runtime.server.prompts import RequestPrompts
from bitnet_onnx.runtime.server.run import Closable, Server, make_plan_answer
from bitnet_onnx.runtime.server.run import Listening as ListenAt
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
def _running(
    package: Path,
    keys: tuple[str, ...],
    plan_answer: PlanAnswer | None,
    step_s: float,
    answer: str,
    endless: bool,
    settings: dict[str, Any],
) -> Iterator[tuple[FakeEngine, RequestPrompts, TextTokenizer, FastAPI]]:
    text_side = PromptEncoder(PackageInfo.open(package))
    tokenizer = text_side.tokenizer
    end = tokenizer.token_id("<|im_end|>")
    assert end is not None
    script = tokenizer.encode(answer, parse_special=False, add_bos=False) + ([] if endless else [end])
    prompts = RequestPrompts(text_side)
    with FakeEngine(script, tokenizer.decode, frozenset({end}), step_s) as engine:
        app = create_app(
            engine, prompts, ServerSettings(MODEL, **settings), keys=ApiKeys(keys), plan_answer=plan_answer
        )
        yield engine, prompts, tokenizer, app


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
    running = _running(package, keys, plan_answer, step_s, answer, endless, settings)
    with (
        running as (engine, prompts, tokenizer, app),
        # A loopback name: the Host of strangers is refused, and has a test of its own.
        TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client,
    ):
        yield Served(engine, client, prompts, tokenizer)


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    server: Server
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Listening(Address):
    """An application behind a real socket."""

    engine: FakeEngine


@contextmanager
def _uvicorn(app: FastAPI, engine: Closable, drain_seconds: float) -> Iterator[Address]:
    listener = ListenAt(port=0).bind()
    server = Server(app, engine, drain_seconds)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield Address(server, *listener.getsockname())
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def listen(
    package: Path,
    *,
    keys: tuple[str, ...] = (),
    step_s: float = 0.0,
    answer: str = ANSWER,
    endless: bool = False,
    drain_seconds: float = 0.2,
    **settings: Any,
) -> Iterator[Listening]:
    """The same through uvicorn, on a free port."""
    with (
        _running(package, keys, None, step_s, answer, endless, settings) as (engine, _, _, app),
        _uvicorn(app, engine, drain_seconds) as address,
    ):
        yield Listening(address.server, address.host, address.port, engine)


@contextmanager
def listen_real(
    package: Path, engine_settings: EngineSettings, keys: tuple[str, ...] = (), **settings: Any
) -> Iterator[tuple[Engine, Address]]:
    """The real engine through uvicorn, on a free port, with all that enforces forms of answers."""
    text_side = PromptEncoder(PackageInfo.open(package))
    with Engine.open(package, engine_settings, device=Device(), threads=1, prompts=text_side) as engine:
        app = create_app(
            engine,
            RequestPrompts(text_side),
            ServerSettings(MODEL, **settings),
            keys=ApiKeys(keys),
            plan_answer=make_plan_answer(text_side),
        )
        with _uvicorn(app, engine, 0.2) as address:
            yield engine, address


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
