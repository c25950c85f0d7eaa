"""Chat messages to token ids by the package's template, without letting a message forge control tokens."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.limited_process import run_limited
from bitnet_onnx.runtime.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("_template_worker.py")
_MAX_SECONDS = 5
_MAX_MEGABYTES = 512
_MAX_CHARACTERS = 4 * 2**20
_MAX_MESSAGES = 10_000
_MAX_REASON = 300
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is what the template knows: system, user, assistant, ..."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or not _ROLE.fullmatch(self.role):
            raise InputError(f"role is {self.role!r:.40}, expected a word such as system, user or assistant")
        if not isinstance(self.content, str):
            raise InputError(f"content of the {self.role} message is a {type(self.content).__name__}, expected text")

    @classmethod
    def parse(cls, value: Self | Mapping[str, object]) -> Self:
        """A message from the usual dictionary.

        Raises:
            InputError: a field is missing, unknown or of a wrong type.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or set(value) != {"role", "content"}:
            raise InputError("a message is an object with the fields role and content, and no others")
        return cls(value["role"], value["content"])  # type: ignore[arg-type]  # checked by __post_init__


class ChatTemplate:
    """A jinja2 chat template, rendered in a limited process.

    Covered: attributes and methods outside the sandbox, loops without end, output and memory without end
    (memory where the system enforces a limit on the address space, as Linux does).
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._variables = {"add_generation_prompt": True, "tools": None, "documents": None, **special_tokens}

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """The text of each conversation, open for the assistant's answer.

        Raises:
            InputError: the template refuses the messages, in its words.
            PackageError: the template is wrong, or took too long or too much memory.
        """
        request = {
            "template": self.source,
            "variables": self._variables,
            "conversations": [
                [{"role": message.role, "content": message.content} for message in messages]
                for messages in conversations
            ],
            "max_characters": _MAX_CHARACTERS,
            "max_megabytes": _MAX_MEGABYTES,
            "max_seconds": _MAX_SECONDS,
        }
        answer = _run_worker(json.dumps(request).encode())
        if "refused" in answer:
            raise InputError(f"the chat template refuses the messages: {_short(answer['refused'])}")
        if "error" in answer:
            raise PackageError(f"the chat template cannot be rendered: {_short(answer['error'])}")
        texts: list[str] = answer["texts"]
        return texts


def _short(reason: object) -> str:
    return " ".join(str(reason).split())[:_MAX_REASON]


def _run_worker(request: bytes) -> dict[str, Any]:
    done = run_limited(_WORKER, request, seconds=_MAX_SECONDS)
    if done is None:
        raise PackageError(f"the chat template did not finish within {_MAX_SECONDS} s")
    try:
        answer = json.loads(done.output)
    except ValueError:
        answer = None
    if done.status or not isinstance(answer, dict):
        logger.debug("template process: %s", done.errors.decode(errors="replace"))
        raise PackageError(
            f"the chat template ended its process (status {done.status}): out of memory or of {_MAX_SECONDS} s of time"
        )
    return answer


def encode_chat(template: ChatTemplate, tokenizer: TextTokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of the rendered conversation, in which only the template writes control tokens.

    The conversation is also rendered with a random word in place of each content. Where both renderings
    hold the same control tokens, the whole text is encoded at once, exactly as other tools do. Where they
    differ, a content holds the text of a control token: the template's parts are then encoded with control
    tokens and the contents as plain text.

    Raises:
        InputError: no messages, too many, the template refuses them, or a content holds a control token and
            the template changes contents so that they cannot be told apart from its own text.
    """
    if not messages:
        raise InputError("no messages to answer")
    size = sum(len(message.content) for message in messages)
    if len(messages) > _MAX_MESSAGES or size > _MAX_CHARACTERS:
        raise InputError(
            f"{len(messages)} messages of {size} characters, above the limits of {_MAX_MESSAGES} and {_MAX_CHARACTERS}"
        )
    key = os.urandom(8).hex()
    # An empty content stays empty: templates ask whether there is one.
    masked = [
        Message(message.role, f"c{key}n{index}e" if message.content else "") for index, message in enumerate(messages)
    ]
    text, mask = template.render([messages, masked])
    ids = tokenizer.encode(text, parse_special=True, add_bos=False)
    skeleton = tokenizer.encode(mask, parse_special=True, add_bos=False)
    control = tokenizer.control_ids
    if [token for token in ids if token in control] == [token for token in skeleton if token in control]:
        return ids
    parts = re.split(f"c{key}n([0-9]+)e", mask)
    contents = _contents(parts, text, messages)
    logger.warning("a message holds the text of a control token; it is read as plain text")
    ids = []
    for part, content in zip(parts[::2], [*contents, ""], strict=True):
        ids += tokenizer.encode(part, parse_special=True, add_bos=False)
        ids += tokenizer.encode(content, parse_special=False, add_bos=False)
    return ids


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
