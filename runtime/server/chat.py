"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.engine.request import Constraint, EngineRequest, Finished, TokenEvent
from bitnet_onnx.runtime.engine.tool_calls import Delta, ToolCallDelta
from bitnet_onnx.runtime.server._interfaces import AnswerStreamLike
from bitnet_onnx.runtime.server.answers import Answer, Answers, EventStream, until_gone
from bitnet_onnx.runtime.server.errors import FieldError, json_response
from bitnet_onnx.runtime.server.generation import (
    Head,
    Usage,
    answer_length,
    finish_reason,
    sampling_parameters,
    submit_all,
)
from bitnet_onnx.runtime.server.logprobs import chat_logprobs
from bitnet_onnx.runtime.server.schemas import ChatRequest
from bitnet_onnx.runtime.server.service import Service
from bitnet_onnx.runtime.server.structured import AnswerParser, AnswerPlan, plan_of, shape_error


@dataclass(frozen=True, slots=True)
class _Chat:
    """A conversation under way; with tools each answer has a parser."""

    request: ChatRequest
    streams: list[AnswerStreamLike]
    parsers: list[AnswerParser | None]


async def answer_chat(service: Service, request: Request) -> Response:
    """Answers a conversation, whole or as a stream.

    Raises:
        ApiError, BitnetOnnxError: it cannot be.
    """
    chat = await service.prepare(request, lambda body, tenant: _submit(service, body, tenant))
    answers = Answers(chat.streams)
    kind = "chat.completion.chunk" if chat.request.stream else "chat.completion"
    head = Head.new("chatcmpl", kind, service.settings.model_name)
    headers = {"X-Request-Id": head.id}
    if chat.request.stream:
        return EventStream(_chunks(service, chat, answers, head), answers, headers)
    try:
        complete = await until_gone(request, answers.complete())
    finally:
        answers.close()
    usage = Usage()
    for answer in complete:
        usage.add(0, answer.finished)
    choices = [_choice(service, chat, index, answer) for index, answer in enumerate(complete)]
    return json_response(head.as_dict(choices=choices, usage=usage.as_dict()), headers=headers)


def _submit(service: Service, body: Mapping[str, object], tenant: str) -> _Chat:
    request = ChatRequest.read_conversation(body, service.settings.max_messages)
    service.check_model(request.model)
    if request.top_logprobs is not None and not request.logprobs:
        raise FieldError("top_logprobs", "needs logprobs to be true")
    choices = request.n or 1
    service.check_answers(1, choices)
    plan = plan_of(request, service.plan_answer)
    ids = service.prompts.conversation(request.messages, None if plan is None else plan.template_tools)
    length = answer_length(
        request.max_completion_tokens or request.max_tokens,
        None,
        ids,
        service.prompts.context_length,
        "max_completion_tokens" if request.max_completion_tokens else "max_tokens",
    )
    requests = [
        EngineRequest(
            ids,
            sampling_parameters(request, max_tokens=length, choice=choice, vocab_size=service.prompts.vocab_size),
            tenant=tenant,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            constraint=_constraint(plan),
        )
        for choice in range(choices)
    ]
    parsers = [None if plan is None else plan.parser() for _ in requests]
    return _Chat(request, submit_all(service.engine, requests), parsers)


def _constraint(plan: AnswerPlan | None) -> Constraint | None:
    try:
        return None if plan is None else plan.constraint()
    except InputError as error:
        raise shape_error(error) from None


def _choice(service: Service, chat: _Chat, index: int, answer: Answer) -> dict[str, object]:
    parser = chat.parsers[index]
    message: dict[str, object] = {"role": "assistant", "content": answer.text, "refusal": None}
    end = finish_reason(answer.finished.reason)
    if parser is not None:
        deltas = [delta for token in answer.tokens for delta in parser.push(token.text, token.id)] + parser.finish()
        content, calls = _split(deltas)
        message["content"] = content if content or not calls else None
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
            end = "tool_calls"
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(answer.tokens, service.prompts.token_text) if chat.request.logprobs else None,
        "finish_reason": end,
    }


def _split(deltas: Iterable[Delta]) -> tuple[str, list[ToolCallDelta]]:
    content, calls = "", []
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            calls.append(delta)
        else:
            content += delta.text
    return content, calls


def _call(call: ToolCallDelta) -> dict[str, object]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


async def _chunks(service: Service, chat: _Chat, answers: Answers, head: Head) -> AsyncGenerator[object]:
    """Every chunk of the stream; a call of a tool is told when it is whole."""
    usage = Usage()
    more: dict[str, object] = {"usage": None} if chat.request.usage_in_stream else {}
    called: set[int] = set()

    def chunk(index: int, delta: dict[str, object], token: TokenEvent | None = None, end: str | None = None) -> object:
        logprobs = None
        if chat.request.logprobs and token is not None:
            logprobs = chat_logprobs([token], service.prompts.token_text)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end}
        return head.as_dict(choices=[choice], **more)

    for index in range(len(chat.streams)):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    async for index, event in answers:
        parser = chat.parsers[index]
        text = event.text if isinstance(event, TokenEvent) else ""
        if parser is not None:
            deltas = parser.finish() if isinstance(event, Finished) else parser.push(event.text, event.id)
            text, calls = _split(deltas)
            for call in calls:
                called.add(index)
                yield chunk(index, {"tool_calls": [{"index": call.index, **_call(call)}]})
        if isinstance(event, Finished):
            usage.add(0, event)
            if text:
                yield chunk(index, {"content": text})
            yield chunk(index, {}, end="tool_calls" if index in called else finish_reason(event.reason))
        elif text or chat.request.logprobs:
            yield chunk(index, {"content": text}, event)
    if chat.request.usage_in_stream:
        yield head.as_dict(choices=[], usage=usage.as_dict())
