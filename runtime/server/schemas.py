"""The requests of both endpoints: what is read, what is ignored, and that everything else is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from bitnet_onnx.json_input import shown
from bitnet_onnx.runtime.server.errors import FieldError

#: Fields that OpenAI's clients send as a matter of course and that mean nothing here.
IGNORED_FIELDS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
#: Of a message `name` is ignored, and these where they hold nothing, as in the echo of an answer.
_EMPTY_OF_MESSAGES = frozenset({"annotations", "audio", "function_call", "refusal", "tool_calls"})

_MAX_FIELDS = 64
_MAX_PARTS = 256
_MAX_STOP = 16
_MAX_TOOLS = 128
_MAX_BIASES = 1024

_Object = dict[str, Any]


def _text_of(content: object) -> object:
    """A content as one string: the text itself, or its parts in lines of their own."""
    if not isinstance(content, list):
        return content
    if len(content) > _MAX_PARTS:
        raise PydanticCustomError("too_many", f"{len(content)} parts exceed the limit of {_MAX_PARTS}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError(
                "part", f"a part of type {shown(str(kind))}: only text parts, with a string `text`, are understood"
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _stop_of(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(_bounded(value, _MAX_STOP)) if isinstance(value, list) else value


def _bounded(value: Any, limit: int) -> Any:
    if isinstance(value, list | dict) and len(value) > limit:
        raise PydanticCustomError("too_many", f"{len(value)} entries exceed the limit of {limit}")
    return value


def _prompt_of(value: object) -> object:
    """A prompt as the list of prompts that it is, each a text or token ids; the elements of ids are checked later."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value) or all(isinstance(item, list) for item in value):
            return value
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return [value]
    raise PydanticCustomError(
        "prompt", "expected a text, token ids, or a list of one kind of these, and at least one entry"
    )


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(_Fields):
    """What a stream also tells; obfuscation does not exist here."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatMessage(_Fields):
    """One message; calls of tools are left as they came."""

    role: Annotated[str, Field(max_length=32)]
    content: Annotated[
        str | None,
        BeforeValidator(_text_of),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}),
    ] = None
    tool_calls: Annotated[list[_Object] | None, BeforeValidator(lambda value: _bounded(value, _MAX_TOOLS))] = None
    tool_call_id: Annotated[str | None, Field(max_length=256)] = None


class GenerationRequest(_Fields):
    """What both endpoints share."""

    #: More than OpenAI's: `top_k`, `min_p` and `repetition_penalty`, as other servers name them.
    model: str | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0, le=2**31)] = None
    min_p: Annotated[float | None, Field(ge=0, lt=1)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100)]] | None,
        BeforeValidator(lambda value: _bounded(value, _MAX_BIASES)),
    ] = None
    n: Annotated[int | None, Field(ge=1)] = None
    seed: int | None = None
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] | None,
        BeforeValidator(_stop_of),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
    ] = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, BeforeValidator(lambda value: _bounded(value, 8))] = None

    ignored: ClassVar[frozenset[str]] = IGNORED_FIELDS

    @classmethod
    def read(cls, body: Mapping[str, object]) -> Self:
        """The request in a body.

        Raises:
            FieldError: a field is unknown or its value is not what it should be.
        """
        fields = {name: value for name, value in body.items() if name not in cls.ignored}
        if len(fields) > _MAX_FIELDS:
            raise FieldError(None, f"the body has {len(fields)} fields, above the limit of {_MAX_FIELDS}")
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _field_error(error) from None

    @property
    def usage_in_stream(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    modalities: list[Literal["text"]] | None = Field(default=None, max_length=1)
    response_format: _Object | None = None
    tools: Annotated[list[_Object] | None, BeforeValidator(lambda value: _bounded(value, _MAX_TOOLS))] = None
    tool_choice: str | _Object | None = None
    parallel_tool_calls: bool | None = None

    @classmethod
    def read_conversation(cls, body: Mapping[str, object], max_messages: int) -> Self:
        """As `read`, with messages as clients echo them: what was null in an answer counts as absent.

        Raises:
            FieldError: also too many messages.
        """
        messages = body.get("messages")
        if isinstance(messages, list):
            if len(messages) > max_messages:
                raise FieldError("messages", f"{len(messages)} messages exceed the limit of {max_messages}")
            body = {**body, "messages": [_without_ignored(message) for message in messages]}
        return cls.read(body)


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: Annotated[
        list[Any],
        BeforeValidator(_prompt_of),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1},
                    {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                    {
                        "type": "array",
                        "items": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                        "minItems": 1,
                    },
                ]
            }
        ),
    ]
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Annotated[int | None, Field(ge=1)] = None


def _without_ignored(message: object) -> object:
    if not isinstance(message, dict):
        return message
    if len(message) > _MAX_FIELDS:
        raise FieldError("messages", f"a message has {len(message)} fields, above the limit of {_MAX_FIELDS}")
    return {
        name: value
        for name, value in message.items()
        if value is not None and name != "name" and (value or name not in _EMPTY_OF_MESSAGES)
    }


def _field_error(error: ValidationError) -> FieldError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # The branches of a union are parts of the place; a client knows fields and indices only.
    place = ".".join(str(part)[:80] for part in first["loc"] if not str(part).startswith(("function-", "constrained-")))
    place = ascii(place)[1:-1]
    if first["type"] == "extra_forbidden":
        return FieldError(place, "this field is not known here; leave it out", code="unknown_field")
    if first["type"] == "missing":
        return FieldError(place, "this field is missing", code="missing_field")
    return FieldError(place or None, first["msg"])
