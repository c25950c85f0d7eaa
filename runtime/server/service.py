"""What both endpoints share: the engine, the prompts, the threads that prepare requests, and the counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request

from bitnet_onnx.runtime.server._body import BodyReader, parse_body
from bitnet_onnx.runtime.server._interfaces import EngineLike
from bitnet_onnx.runtime.server.errors import ApiError
from bitnet_onnx.runtime.server.prompts import RequestPrompts
from bitnet_onnx.runtime.server.settings import ServerSettings
from bitnet_onnx.runtime.server.structured import PlanAnswer

_Job = TypeVar("_Job")


class Service:
    """One served model.

    Args:
        engine: started.
        prompts: encoder of the same package.
        settings: of the server.
        plan_answer: enforces forms of answers; None: requests for them are refused.
    """

    def __init__(
        self,
        engine: EngineLike,
        prompts: RequestPrompts,
        settings: ServerSettings,
        plan_answer: PlanAnswer | None = None,
    ) -> None:
        self.engine = engine
        self.prompts = prompts
        self.settings = settings
        self.plan_answer = plan_answer
        self._bodies = BodyReader(settings)
        # Parsing and tokenizing take up to seconds; the loop has /health to answer meanwhile.
        self._pool = ThreadPoolExecutor(settings.workers, "bitnet-onnx-prepare")

    async def prepare(self, request: Request, job: Callable[[Mapping[str, object], str], _Job]) -> _Job:
        """Reads the body and hands its JSON object and the tenant to `job`, in a thread.

        Raises:
            ApiError: the body is refused, or whatever `job` raises.
        """
        tenant: str = request.scope["state"]["tenant"]

        def work(body: bytes) -> _Job:
            return job(parse_body(body, self.settings), tenant)

        async with self._bodies.reading(request) as body:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, body)

    def check_model(self, model: str | None) -> None:
        """Refuses another model than the served one; none at all is the served one.

        Raises:
            ApiError: 404.
        """
        if model is not None and model != self.settings.model_name:
            raise ApiError(
                404,
                f"the model {model!r:.80} is not served here; this is {self.settings.model_name!r}",
                param="model",
                code="model_not_found",
            )

    def check_answers(self, prompts: int, choices: int) -> None:
        """Refuses a request for too many answers.

        Raises:
            ApiError: 400.
        """
        if prompts * choices > self.settings.max_answers:
            raise ApiError(
                400,
                f"n: {prompts} prompts with {choices} answers each exceed the limit of {self.settings.max_answers} "
                f"answers",
                param="n",
            )

    def close(self) -> None:
        """Ends the threads; what they were doing is finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)
