"""`POST /v1/chat/completions`."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.engine.request import EngineRequest, TokenEvent
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
from bitnet_onnx.runtime.server.structured import AnswerForm, form_of


@dataclass(frozen=True, slots=True)
class _Chat:
    """A conversation under way."""

    request: ChatRequest
    form: AnswerForm
    streams: list[AnswerStreamLike]


async def answer_chat(service: Service, request: Request) -> Response:
    """Answers a conversation, whole or as a stream.

    Raises:
        ApiError, BitnetOnnxError: it cannot be.
    """
    chat = await service.prepare(request, lambda body, tenant: _submit(service, body, tenant))
    answers = Answers(chat.streams)
    head = Head.new(
        "chatcmpl", "chat.completion.chunk" if chat.request.stream else "chat.completion", service.settings.model_name
    )
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
    form = form_of(request)
    ids = _encode(service, request, form)
    length = answer_length(
        request.max_completion_tokens or request.max_tokens,
        None,
        ids,
        service.prompts.context_length,
        "max_completion_tokens" if request.max_completion_tokens else "max_tokens",
    )
    requests = []
    for choice in range(choices):
        parameters = sampling_parameters(
            request, max_tokens=length, choice=choice, vocab_size=service.prompts.vocab_size
        )
        try:
            constraint = None if form.free or service.structured is None else service.structured.make_constraint(form)
        except InputError as error:
            raise FieldError("response_format" if form.response_format else "tools", str(error)) from None
        requests.append(
            EngineRequest(
                ids,
                parameters,
                tenant=tenant,
                top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
                constraint=constraint,
            )
        )
    return _Chat(request, form, submit_all(service.engine, requests))


def _encode(service: Service, request: ChatRequest, form: AnswerForm) -> tuple[int, ...]:
    if not form.free and service.structured is None:
        field = "response_format" if form.response_format is not None else "tools"
        raise FieldError(field, "this server cannot enforce it, and refuses rather than ignores it")
    if not form.tools or service.structured is None:
        return service.prompts.conversation(request.messages)
    messages = [message.model_dump(exclude_none=True) for message in request.messages]
    try:
        ids = service.structured.encode_tools(messages, form)
    except InputError as error:
        raise FieldError("tools", str(error)) from None
    return service.prompts.checked(ids, "messages")


def _choice(service: Service, chat: _Chat, index: int, answer: Answer) -> dict[str, object]:
    message, called = _message(service, chat.form, answer.text)
    return {
        "index": index,
        "message": {"role": "assistant", **message},
        "logprobs": chat_logprobs(answer.tokens, service.prompts.token_text) if chat.request.logprobs else None,
        "finish_reason": "tool_calls" if called else finish_reason(answer.finished.reason),
    }


def _message(service: Service, form: AnswerForm, text: str) -> tuple[dict[str, object], bool]:
    """The fields of a complete answer beside its role, and whether it calls tools."""
    if not form.tools or service.structured is None:
        return {"content": text, "refusal": None}, False
    content, calls = service.structured.read_tool_calls(text, form)
    if not calls:
        return {"content": content, "refusal": None}, False
    tool_calls = [
        {
            "id": f"call_{os.urandom(12).hex()}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]
    return {"content": content or None, "refusal": None, "tool_calls": tool_calls}, True


async def _chunks(service: Service, chat: _Chat, answers: Answers, head: Head) -> AsyncGenerator[object]:
    """Every chunk of the stream. With tools an answer is told when it is complete: only then it is known what it is."""
    usage = Usage()
    more: dict[str, object] = {"usage": None} if chat.request.usage_in_stream else {}
    held: list[list[str]] = [[] for _ in chat.streams]

    def chunk(index: int, delta: dict[str, object], token: TokenEvent | None = None, end: str | None = None) -> object:
        logprobs = None
        if chat.request.logprobs and token is not None:
            logprobs = chat_logprobs([token], service.prompts.token_text)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end}
        return head.as_dict(choices=[choice], **more)

    for index in range(len(chat.streams)):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    async for index, event in answers:
        if isinstance(event, TokenEvent):
            if chat.form.tools:
                held[index].append(event.text)
                if chat.request.logprobs:
                    yield chunk(index, {}, event)
            elif event.text or chat.request.logprobs:
                yield chunk(index, {"content": event.text}, event)
            continue
        usage.add(0, event)
        end = finish_reason(event.reason)
        if chat.form.tools:
            delta, called = _message(service, chat.form, "".join(held[index]))
            if called:
                end = "tool_calls"
            yield chunk(index, _streamed(delta))
        yield chunk(index, {}, end=end)
    if chat.request.usage_in_stream:
        yield head.as_dict(choices=[], usage=usage.as_dict())


def _streamed(message: dict[str, object]) -> dict[str, object]:
    """A message as a delta, whose calls are numbered."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [{"index": index, **call} for index, call in enumerate(calls)]}
