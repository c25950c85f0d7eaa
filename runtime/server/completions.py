"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from bitnet_onnx.runtime.engine.request import EngineRequest, Finished
from bitnet_onnx.runtime.server._interfaces import AnswerStreamLike
from bitnet_onnx.runtime.server.answers import Answers, EventStream, until_gone
from bitnet_onnx.runtime.server.errors import FieldError, json_response
from bitnet_onnx.runtime.server.generation import (
    Head,
    Usage,
    answer_length,
    finish_reason,
    sampling_parameters,
    submit_all,
)
from bitnet_onnx.runtime.server.logprobs import CompletionLogprobs
from bitnet_onnx.runtime.server.schemas import CompletionRequest
from bitnet_onnx.runtime.server.service import Service

#: OpenAI's default for this endpoint.
_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class _Completion:
    """Completions under way; the answers to one prompt stand together."""

    request: CompletionRequest
    streams: list[AnswerStreamLike]
    choices: int

    def prompt_of(self, index: int) -> int:
        """Number of the prompt that an answer belongs to."""
        return index // self.choices


async def answer_completion(service: Service, request: Request) -> Response:
    """Continues one or more prompts, whole or as a stream.

    Raises:
        ApiError, BitnetOnnxError: it cannot be.
    """
    completion = await service.prepare(request, lambda body, tenant: _submit(service, body, tenant))
    answers = Answers(completion.streams)
    head = Head.new("cmpl", "text_completion", service.settings.model_name)
    headers = {"X-Request-Id": head.id}
    if completion.request.stream:
        return EventStream(_chunks(service, completion, answers, head), answers, headers)
    try:
        complete = await until_gone(request, answers.complete())
    finally:
        answers.close()
    usage = Usage()
    choices: list[dict[str, object]] = []
    for index, answer in enumerate(complete):
        usage.add(completion.prompt_of(index), answer.finished)
        logprobs = None
        if completion.request.logprobs is not None:
            logprobs = CompletionLogprobs(service.prompts.token_text).part(answer.tokens)
        choices.append(_choice(index, answer.text, logprobs, finish_reason(answer.finished.reason)))
    return json_response(head.as_dict(choices=choices, usage=usage.as_dict()), headers=headers)


def _choice(index: int, text: str, logprobs: dict[str, object] | None, end: str | None) -> dict[str, object]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": end}


def _submit(service: Service, body: Mapping[str, object], tenant: str) -> _Completion:
    request = CompletionRequest.read(body)
    service.check_model(request.model)
    choices = request.n or 1
    if request.best_of not in (None, choices):
        raise FieldError("best_of", f"answers are not ranked here: leave it out, or make it n, which is {choices}")
    service.check_answers(len(request.prompt), choices)
    encoder = service.prompts
    requests = []
    for prompt in request.prompt:
        ids = encoder.text(prompt) if isinstance(prompt, str) else encoder.ids(prompt)
        length = answer_length(request.max_tokens, _MAX_TOKENS, ids, encoder.context_length, "max_tokens")
        requests += [
            EngineRequest(
                ids,
                sampling_parameters(request, max_tokens=length, choice=choice, vocab_size=encoder.vocab_size),
                tenant=tenant,
                top_logprobs=request.logprobs,
                continues_text=True,
            )
            for choice in range(choices)
        ]
    return _Completion(request, submit_all(service.engine, requests), choices)


async def _chunks(service: Service, completion: _Completion, answers: Answers, head: Head) -> AsyncGenerator[object]:
    usage = Usage()
    more: dict[str, object] = {"usage": None} if completion.request.usage_in_stream else {}
    wanted = completion.request.logprobs is not None
    logprobs = [CompletionLogprobs(service.prompts.token_text) for _ in completion.streams]
    async for index, event in answers:
        if isinstance(event, Finished):
            usage.add(completion.prompt_of(index), event)
            yield head.as_dict(choices=[_choice(index, "", None, finish_reason(event.reason))], **more)
        elif event.text or wanted:
            part = logprobs[index].part([event]) if wanted else None
            yield head.as_dict(choices=[_choice(index, event.text, part, None)], **more)
    if completion.request.usage_in_stream:
        yield head.as_dict(choices=[], usage=usage.as_dict())
