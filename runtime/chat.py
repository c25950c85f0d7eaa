"""Chat messages to token ids by the package's template, without letting a message forge control tokens."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.json_input import load_object
from bitnet_onnx.limited_process import Limits, ProcessEndedError
from bitnet_onnx.process_pool import Keeping, ProcessPool
from bitnet_onnx.runtime.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("_template_worker.py")
_LIMITS = Limits(megabytes=512, seconds=5)
#: Beyond a few, processes would only wait for each other.
_KEEPING = Keeping(processes=min(os.cpu_count() or 1, 4), answers=1000, megabytes=128)
_MAX_CHARACTERS = 4 * 2**20
_MAX_MESSAGES = 10_000
_MAX_REASON = 300
_NEEDED = frozenset(("role", "content"))
_FIELDS = _NEEDED | {"tool_calls", "tool_call_id", "name"}
_CALL_FIELDS = frozenset(("id", "type", "function"))
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an earlier answer made: the name of a tool and its arguments as JSON values."""

    name: str
    arguments: Mapping[str, object]
    id: str | None = None

    @classmethod
    def parse(cls, value: object) -> Self:
        """A call from OpenAI's form, whose arguments are JSON as text, or transformers', where they are an object.

        Raises:
            InputError: a field is missing, unknown or of a wrong type.
        """
        function = value.get("function") if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(function, Mapping) or not set(value) <= _CALL_FIELDS:
            raise InputError("a tool call is an object with the fields id, type and function, and no others")
        if value.get("type", "function") != "function" or set(function) != {"name", "arguments"}:
            raise InputError("the function of a tool call is an object with the fields name and arguments")
        name, arguments, identity = function["name"], function["arguments"], value.get("id")
        if not isinstance(name, str) or not (identity is None or isinstance(identity, str)):
            raise InputError("name and id of a tool call are texts")
        if isinstance(arguments, str):
            arguments = load_object(_utf8(arguments), f"arguments of the call of {name:.40}", max_bytes=_MAX_CHARACTERS)
        if not isinstance(arguments, Mapping):
            raise InputError(f"arguments of the call of {name:.40} are no object")
        return cls(name, arguments, identity)

    def for_template(self) -> dict[str, object]:
        """As transformers gives it to a template."""
        call: dict[str, object] = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return call if self.id is None else {"id": self.id, **call}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: what the template knows: system, user, assistant, tool, ...
        content: its text; may be empty where there are `tool_calls`.
        tool_calls: calls that this answer of the assistant made.
        tool_call_id: the call whose result this message of a tool is.
        name: of the tool or the speaker, where the template shows it.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or not _ROLE.fullmatch(self.role):
            raise InputError(f"role is {self.role!r:.40}, expected a word such as system, user or assistant")
        if not isinstance(self.content, str):
            raise InputError(f"content of the {self.role} message is a {type(self.content).__name__}, expected text")
        for field in ("tool_call_id", "name"):
            if not isinstance(text := getattr(self, field), str | None):
                raise InputError(f"{field} of the {self.role} message is a {type(text).__name__}, expected text")

    @classmethod
    def parse(cls, value: Self | Mapping[str, object]) -> Self:
        """A message from the usual dictionary.

        Raises:
            InputError: a field is missing, unknown or of a wrong type.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or not _NEEDED <= set(value) <= _FIELDS:
            raise InputError(
                "a message is an object with the fields role and content, for tools also tool_calls, tool_call_id and "
                "name, and no others"
            )
        calls = value.get("tool_calls") or []
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise InputError("tool_calls is no list")
        content = "" if calls and value["content"] is None else value["content"]
        return cls(
            role=value["role"],  # type: ignore[arg-type]  # checked by __post_init__, as are the others
            content=content,  # type: ignore[arg-type]
            tool_calls=tuple(ToolCall.parse(call) for call in calls),
            tool_call_id=value.get("tool_call_id"),  # type: ignore[arg-type]
            name=value.get("name"),  # type: ignore[arg-type]
        )

    def for_template(self) -> dict[str, object]:
        """As transformers gives it to a template: absent fields are absent."""
        message: dict[str, object] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        for field in ("tool_call_id", "name"):
            if (text := getattr(self, field)) is not None:
                message[field] = text
        return message


class ChatTemplate:
    """A jinja2 chat template, rendered in limited processes that are kept; for any number of threads.

    Covered: attributes and methods outside the sandbox, loops without end, output and memory without end
    (memory where the system enforces a limit on the address space, as Linux does), and what one conversation would
    leave for the next.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._variables = {"tools": None, "documents": None, **special_tokens}
        self._processes = ProcessPool(_WORKER, _LIMITS, _KEEPING)

    def render(
        self,
        conversations: Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        generation_prompt: bool = True,
    ) -> list[str]:
        """The text of each conversation, open for the assistant's answer.

        Args:
            conversations: each its messages.
            generation_prompt: what `add_generation_prompt` is; false where the conversation is as it ended.
            tools: JSON values in OpenAI's form, `{"type": "function", "function": {...}}`, which transformers also
                gives to templates.

        Raises:
            InputError: the template refuses the messages, in its words.
            PackageError: the template is wrong, or took too long or too much memory.
        """
        variables: dict[str, object] = {"add_generation_prompt": generation_prompt, **self._variables}
        if tools is not None:
            variables["tools"] = list(tools)
        request = {
            "template": self.source,
            "variables": variables,
            "conversations": [[message.for_template() for message in messages] for messages in conversations],
            "max_characters": _MAX_CHARACTERS,
        }
        answer = self._ask(json.dumps(request).encode())
        if "refused" in answer:
            raise InputError(f"the chat template refuses the messages: {_short(answer['refused'])}")
        if "error" in answer:
            raise PackageError(f"the chat template cannot be rendered: {_short(answer['error'])}")
        texts: list[str] = answer["texts"]
        return texts

    def _ask(self, request: bytes) -> dict[str, Any]:
        try:
            return self._processes.ask(request)
        except ProcessEndedError as error:
            if error.status is None:
                raise PackageError(f"the chat template did not finish within {_LIMITS.seconds} s") from None
            raise PackageError(
                f"the chat template ended its process (status {error.status}): out of memory or of {_LIMITS.seconds} s "
                f"of time"
            ) from None

    def close(self) -> None:
        """Ends the processes, which otherwise end with this object or with Python."""
        self._processes.close()


def _short(reason: object) -> str:
    return " ".join(str(reason).split())[:_MAX_REASON]


def encode_chat(
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, object]] | None = None,
) -> list[int]:
    """Token ids of the rendered conversation, in which only the template writes control tokens.

    The conversation is also rendered with a random word in place of each content. Where both renderings
    hold the same control tokens, the whole text is encoded at once, exactly as other tools do. Where they
    differ, a content holds the text of a control token: the template's parts are then encoded with control
    tokens and the contents as plain text. What a template makes of tools and their calls cannot be told apart:
    no text in them may hold a control token.

    Raises:
        InputError: no messages, too many, the template refuses them, or a content holds a control token and
            the template changes contents so that they cannot be told apart from its own text; a tool or a call of
            one holds a control token.
    """
    pieces, ids = _safe_pieces(template, tokenizer, messages, tools, generation_prompt=True)
    if ids is not None:
        return ids
    logger.warning("a message holds the text of a control token; it is read as plain text")
    return [
        token
        for text, parse_special in pieces
        for token in tokenizer.encode(text, parse_special=parse_special, add_bos=False)
    ]


def chat_pieces(
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, object]] | None = None,
) -> list[tuple[str, bool]]:
    """The rendered conversation as it ended, in pieces to be encoded by themselves, and whether with control tokens.

    Raises:
        InputError: as `encode_chat`.
    """
    return _safe_pieces(template, tokenizer, messages, tools, generation_prompt=False)[0]


def _safe_pieces(
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, object]] | None,
    *,
    generation_prompt: bool,
) -> tuple[list[tuple[str, bool]], list[int] | None]:
    """Pieces of the conversation as `chat_pieces`; where it is one, its ids too."""
    if not messages:
        raise InputError("no messages to answer")
    size = sum(len(message.content) for message in messages)
    if len(messages) > _MAX_MESSAGES or size > _MAX_CHARACTERS:
        raise InputError(
            f"{len(messages)} messages of {size} characters, above the limits of {_MAX_MESSAGES} and {_MAX_CHARACTERS}"
        )
    structured: list[object] = [] if tools is None else [list(tools)]
    structured += [
        {**message.for_template(), "content": ""}
        for message in messages
        if message.tool_calls or message.tool_call_id or message.name
    ]
    _check_structured(structured, tokenizer)
    key = os.urandom(8).hex()
    # An empty content stays empty: templates ask whether there is one.
    masked = [
        replace(message, content=f"c{key}n{index}e" if message.content else "")
        for index, message in enumerate(messages)
    ]
    text, mask = template.render([messages, masked], tools, generation_prompt=generation_prompt)
    ids = tokenizer.encode(text, parse_special=True, add_bos=False)
    skeleton = tokenizer.encode(mask, parse_special=True, add_bos=False)
    control = tokenizer.control_ids
    if [token for token in ids if token in control] == [token for token in skeleton if token in control]:
        return [(text, True)], ids
    parts = re.split(f"c{key}n([0-9]+)e", mask)
    contents = _contents(parts, text, messages)
    pieces: list[tuple[str, bool]] = []
    for part, content in zip(parts[::2], [*contents, ""], strict=True):
        pieces += [(part, True), (content, False)]
    return pieces, None


def _check_structured(values: Sequence[object], tokenizer: TextTokenizer) -> None:
    """Bounds what tools and calls hold, and refuses control tokens in it."""
    if not values:
        return
    try:
        text = json.dumps(values, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise InputError("tools and tool calls hold something that is not JSON") from None
    if len(text) > _MAX_CHARACTERS:
        raise InputError(f"tools and tool calls have {len(text)} characters, above the limit of {_MAX_CHARACTERS}")
    load_object(_utf8(f'{{"tools":{text}}}'), "tools and tool calls", max_bytes=4 * _MAX_CHARACTERS + 16)
    pending: list[object] = list(values)
    texts = [text]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, Mapping):
            pending += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            pending += value
    # The separator is part of no token's text.
    ids = tokenizer.encode("\n\0\n".join(texts), parse_special=True, add_bos=False)
    if tokenizer.control_ids & set(ids):
        raise InputError("a tool or a tool call holds the text of a control token; remove it")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InputError("tools and tool calls hold a lone surrogate, which is not valid Unicode") from None


def _contents(parts: Sequence[str], text: str, messages: Sequence[Message]) -> list[str]:
    """The content behind each of the template's parts, such that together they are `text`."""
    order = [int(index) for index in parts[1::2]]
    for change in (str, str.strip):
        contents = [change(messages[index].content) for index in order]
        if "".join(a + b for a, b in zip(parts[::2], [*contents, ""], strict=True)) == text:
            return contents
    raise InputError(
        "a message holds the text of a control token, and this chat template changes messages in a way that "
        "does not let it be read as plain text; remove it from the message"
    )
