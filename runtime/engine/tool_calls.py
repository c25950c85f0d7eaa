"""Calls of tools in an answer: which format a chat template teaches, and the calls out of the text as it arrives.

A call counts when it is whole, well-formed and names a tool that was offered; anything else stays the text that it is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bitnet_onnx.errors import InputError
from bitnet_onnx.json_input import load_object

#: `hermes`: `<tool_call>{"name", "arguments"}</tool_call>` (Hermes, Qwen); `llama3`: the whole answer is
#: `{"name", "parameters"}`, perhaps behind `<|python_tag|>`; `mistral`: `[TOOL_CALLS] [{"name", "arguments"}, ...]`.
ToolFormat: TypeAlias = Literal["hermes", "llama3", "mistral"]

HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
LLAMA_TAG = "<|python_tag|>"
MISTRAL_TAG = "[TOOL_CALLS]"
_MARKERS: dict[ToolFormat, tuple[str, ...]] = {
    "hermes": (HERMES_OPEN, HERMES_CLOSE),
    "llama3": (LLAMA_TAG,),
    "mistral": (MISTRAL_TAG,),
}
_MAX_CALL_BYTES = 2**20
#: How a call of Llama 3 can begin; any other object is plain text from here on.
_CALL_KEYS = ('"name"', '"type"', '"function"', '"parameters"', '"arguments"', '"id"')
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A whole call.

    Attributes:
        index: its place among the calls of the answer.
        id: for the tool's result to refer to.
        name: one of the tools that were offered.
        arguments: a JSON object as text.
    """

    index: int
    id: str
    name: str
    arguments: str


Delta: TypeAlias = ContentDelta | ToolCallDelta


def detect_format(template: str) -> ToolFormat | None:
    """How the model of a chat template writes calls, or None where the template knows no tools."""
    if "tools" not in template:
        return None
    if HERMES_OPEN in template:
        return "hermes"
    if MISTRAL_TAG in template:
        return "mistral"
    if LLAMA_TAG in template or re.search(r'\\?"parameters\\?"\s*:', template):
        return "llama3"
    return None


def marker_ids(tool_format: ToolFormat, control_tokens: Mapping[str, int]) -> dict[int, str]:
    """The format's markers that are control tokens: answers are decoded without them, so that the parser must be told.

    Args:
        tool_format: of the model's template.
        control_tokens: text and id, as `ConstraintFactory.control_tokens` has them.
    """
    return {control_tokens[marker]: marker for marker in _MARKERS[tool_format] if marker in control_tokens}


class ToolCallParser:
    """Splits an answer, piece by piece, into text and calls.

    Text is let through as soon as it cannot be the beginning of a call; a call comes out when it is whole.

    Args:
        tool_format: of the model's template.
        names: the tools that were offered.
        markers: of `marker_ids`.
    """

    def __init__(
        self, tool_format: ToolFormat, names: Collection[str], markers: Mapping[int, str] | None = None
    ) -> None:
        self._format = tool_format
        self._names = frozenset(names)
        self._markers = dict(markers or {})
        self._text = ""  # not yet let through
        self._space = ""  # white space that only counts where text follows
        self._scan = _JsonScan()
        self._in_call = tool_format == "llama3"
        self._anything = False  # text was let through
        self.calls = 0

    def push(self, text: str, token: int | None = None) -> list[Delta]:
        """What became certain with one more event of the answer: its text and its token."""
        self._text += text
        if token is not None and token in self._markers:
            self._text += self._markers[token]
        return self._advance(final=False)

    def finish(self) -> list[Delta]:
        """What is left at the end of the answer."""
        deltas = self._advance(final=True)
        if self._space and not self.calls:
            deltas.append(ContentDelta(self._space))
        self._space = ""
        return _joined(deltas)

    def _advance(self, *, final: bool) -> list[Delta]:
        deltas: list[Delta] = []
        while self._text:
            before = (len(self._text), self._in_call)
            deltas += self._call(final) if self._in_call else self._plain(final)
            if before == (len(self._text), self._in_call):
                break
        return _joined(deltas)

    def _plain(self, final: bool) -> list[Delta]:
        """Lets text through up to what may be the marker of a call."""
        if self._format == "llama3":
            text, self._text = self._text, ""
            return self._content(text)
        marker = _MARKERS[self._format][0]
        at = self._text.find(marker)
        if at < 0:
            at = len(self._text) - (0 if final else _overlap(self._text, marker))
        else:
            self._in_call = True
            self._scan = _JsonScan()
        text, self._text = self._text[:at], self._text[at:]
        return self._content(text)

    def _call(self, final: bool) -> list[Delta]:
        """Reads the call at the beginning of the text: gives it out, waits for the rest, or makes it text again."""
        begin = self._begin(final)
        if begin is None:
            return []
        if begin < 0:
            return self._no_call()
        end = self._scan.find_end(self._text, begin)
        if end is None:
            return self._no_call() if self._scan.failed or final else []
        found = self._read(self._text[begin:end])
        if found is None:
            return self._no_call()
        if self._format == "hermes":
            rest = self._text[end:].lstrip(_SPACE)
            if not rest.startswith(HERMES_CLOSE) and (rest or not final):
                if HERMES_CLOSE.startswith(rest) and not final:
                    return []
                return self._no_call()
            end = len(self._text) - len(rest) + (len(HERMES_CLOSE) if rest else 0)
        self._text = self._text[end:]
        self._space = ""
        # Llama's next call, if any, follows a semicolon; those of the others begin with their marker again.
        self._in_call = self._format == "llama3"
        self._scan = _JsonScan()
        deltas: list[Delta] = []
        for name, arguments in found:
            identity = secrets.token_hex(8)[:9] if self._format == "mistral" else f"call_{secrets.token_hex(12)}"
            deltas.append(ToolCallDelta(self.calls, identity, name, arguments))
            self.calls += 1
        return deltas

    def _begin(self, final: bool) -> int | None:
        """Where the JSON of a call begins; None: not there yet, -1: there is none."""
        text = self._text
        at = len(text) - len(text.lstrip(_SPACE))
        if self._format == "llama3":
            if self.calls and text.startswith(";", at):
                at += 1
            elif not self.calls and text.startswith(LLAMA_TAG, at):
                at += len(LLAMA_TAG)
            elif not final and not self.calls and at < len(text) and LLAMA_TAG.startswith(text[at:]):
                return None
        else:
            at = len(_MARKERS[self._format][0])
        at += len(text[at:]) - len(text[at:].lstrip(_SPACE))
        if at == len(text):
            return -1 if final else None
        if text[at] != ("[" if self._format == "mistral" else "{"):
            return -1
        if self._format == "llama3":
            key = text[at + 1 :].lstrip(_SPACE)
            if not any(key.startswith(known) or known.startswith(key) for known in _CALL_KEYS):
                return -1
        return at

    def _no_call(self) -> list[Delta]:
        """What looked like a call is text; the next one may begin right behind its marker."""
        self._in_call = False
        self._scan = _JsonScan()
        size = len(self._text) if self._format == "llama3" else len(_MARKERS[self._format][0])
        text, self._text = self._text[:size], self._text[size:]
        return self._content(text)

    def _content(self, text: str) -> list[Delta]:
        text = self._space + text
        kept = text.rstrip(_SPACE)
        if self._format == "llama3" and not self.calls:
            kept = text  # nothing but text can follow
        self._space = text[len(kept) :]
        if not self._anything and self.calls:
            kept = kept.lstrip(_SPACE)
        if not kept:
            return []
        self._anything = True
        return [ContentDelta(kept)]

    def _read(self, text: str) -> list[tuple[str, str]] | None:
        """Names and arguments of the calls in a JSON value, or None if it is something else."""
        try:
            # A list is read as the value of an object: the limits of our reader hold for it too.
            value = load_object(f'{{"calls":{text}}}'.encode(), "tool call", max_bytes=_MAX_CALL_BYTES)["calls"]
            items = value if isinstance(value, list) else [value]
            found = [_call_of(item, self._names) for item in items]
        except (InputError, UnicodeEncodeError):
            return None
        calls = [call for call in found if call is not None]
        return calls if calls and len(calls) == len(found) else None


def _call_of(value: object, names: frozenset[str]) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function", value)
    if isinstance(inner, str):  # {"type": "function", "function": name, "parameters": ...}
        inner = {**value, "name": inner}
    if not isinstance(inner, dict):
        return None
    name = inner.get("name")
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):  # some models write the object as a text
        arguments = load_object(arguments.encode(), "tool call", max_bytes=_MAX_CALL_BYTES)
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    text.encode()  # a lone surrogate is no text
    return name, text


class _JsonScan:
    """Finds the end of an object or list in a growing text, each character once."""

    def __init__(self) -> None:
        self._at = 0
        self._closers: list[str] = []
        self._in_string = False
        self._end: int | None = None
        self.failed = False

    def find_end(self, text: str, begin: int) -> int | None:
        """Where the value that begins at `begin` ends, or None while it goes on or cannot end."""
        at = max(self._at, begin)
        while at < len(text) and not self.failed and self._end is None:
            character = text[at]
            at += 1
            if self._in_string:
                if character == "\\":
                    if at == len(text):  # the escaped character is still to come
                        at -= 1
                        break
                    at += 1
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._closers.append("}" if character == "{" else "]")
            elif character in "}]":
                self.failed = self._closers.pop() != character
                if not self._closers and not self.failed:
                    self._end = at
        self._at = at
        return self._end


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


def _joined(deltas: list[Delta]) -> list[Delta]:
    """Neighbouring texts as one."""
    result: list[Delta] = []
    for delta in deltas:
        if result and isinstance(delta, ContentDelta) and isinstance(result[-1], ContentDelta):
            result[-1] = ContentDelta(result[-1].text + delta.text)
        else:
            result.append(delta)
    return result
