"""The application: addresses, and who answers them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from bitnet_onnx.runtime.server._interfaces import EngineLike
from bitnet_onnx.runtime.server.auth import ApiKeys
from bitnet_onnx.runtime.server.chat import answer_chat
from bitnet_onnx.runtime.server.completions import answer_completion
from bitnet_onnx.runtime.server.errors import handle_errors, json_response
from bitnet_onnx.runtime.server.guard import Guard
from bitnet_onnx.runtime.server.page import page_response
from bitnet_onnx.runtime.server.prometheus import CONTENT_TYPE, ServerMetrics
from bitnet_onnx.runtime.server.prompts import RequestPrompts
from bitnet_onnx.runtime.server.schemas import ChatRequest, CompletionRequest, GenerationRequest
from bitnet_onnx.runtime.server.service import Service
from bitnet_onnx.runtime.server.settings import ServerSettings
from bitnet_onnx.runtime.server.structured import PlanAnswer

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in (
        (400, "a field is wrong, unknown or missing"),
        (401, "the API key is missing or wrong"),
        (403, "the Host is not this machine, and there are no API keys"),
        (404, "another model"),
        (408, "the body took too long"),
        (413, "the body is too large"),
        (415, "the body is not application/json"),
        (429, "busy: try again after Retry-After seconds"),
        (503, "the engine has failed, or the server is ending"),
    )
}


def create_app(
    engine: EngineLike,
    prompts: RequestPrompts,
    settings: ServerSettings,
    *,
    keys: ApiKeys | None = None,
    plan_answer: PlanAnswer | None = None,
    metrics: ServerMetrics | None = None,
) -> FastAPI:
    """The application that serves one engine; starting and closing the engine is the caller's.

    Args:
        engine: started.
        prompts: encoder of the same package.
        settings: names and limits.
        keys: that open it; None: it is open.
        plan_answer: enforces `response_format` and `tools`; None: requests with these are refused.
        metrics: of the same engine, for whoever else reads them; None: only `/metrics` does.
    """
    service = Service(engine, prompts, settings, plan_answer)
    metrics = metrics or ServerMetrics(engine, settings.model_name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # No documentation pages: they load scripts from other hosts. The document itself is at /openapi.json.
    app = FastAPI(title="bitnet-onnx", version=version("bitnet-onnx"), docs_url=None, redoc_url=None, lifespan=lifespan)
    handle_errors(app)
    app.add_middleware(Guard, keys=keys or ApiKeys(), settings=settings, metrics=metrics)
    model = {"id": settings.model_name, "object": "model", "created": 0, "owned_by": "bitnet-onnx"}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return page_response()

    @app.get("/health", responses={503: {"description": "the engine has failed"}})
    async def health() -> Response:
        """Whether the engine answers."""
        healthy = engine.healthy
        return json_response({"status": "ok" if healthy else "failed"}, 200 if healthy else 503)

    @app.get("/metrics", responses={401: _REFUSALS[401]})
    def metrics_() -> Response:  # in a thread: that of replicas asks others
        """Counts for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models", responses={401: _REFUSALS[401]})
    async def models() -> Response:
        """The one model."""
        return json_response({"object": "list", "data": [model]})

    # Declared by hand, as the bodies are: FastAPI would add errors of its own form to the document.
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}

    @app.get(
        "/v1/models/{name:path}",
        openapi_extra={"parameters": [name]},
        responses={401: _REFUSALS[401], 404: _REFUSALS[404]},
    )
    async def model_by_name(request: Request) -> Response:
        """The one model, by its name."""
        service.check_model(request.path_params["name"])
        return json_response(model)

    @app.post("/v1/chat/completions", openapi_extra=_body(ChatRequest), responses=_REFUSALS)
    async def chat_completions(request: Request) -> Response:
        """Answers a conversation."""
        return await answer_chat(service, request)

    @app.post("/v1/completions", openapi_extra=_body(CompletionRequest), responses=_REFUSALS)
    async def completions(request: Request) -> Response:
        """Continues texts."""
        return await answer_completion(service, request)

    return app


def _body(model: type[GenerationRequest]) -> dict[str, Any]:
    schema = _inlined(model.model_json_schema())
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, which would point out of the place that it is put to."""
    definitions = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).removeprefix("#/$defs/")
            return resolve(definitions[name]) if name else {key: resolve(item) for key, item in value.items()}
        return [resolve(item) for item in value] if isinstance(value, list) else value

    resolved: dict[str, Any] = resolve(schema)
    return resolved
