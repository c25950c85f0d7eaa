"""What the server asks of whoever constrains answers: a form of the answer in, constraints and calls of tools out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bitnet_onnx.runtime.engine.request import Constraint
from bitnet_onnx.runtime.server.errors import FieldError
from bitnet_onnx.runtime.server.schemas import ChatRequest

_FORMATS = ("text", "json_object", "json_schema")
_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The fields of a request that shape its answer, as the client sent them.

    Attributes:
        response_format: of type json_object or json_schema; None: any text.
        tools: functions that the model may call.
        tool_choice: auto, required, or an object that names one of the tools.
        parallel_tool_calls: whether an answer may call more than one.
    """

    response_format: Mapping[str, Any] | None
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True

    @property
    def free(self) -> bool:
        """Whether any text will do."""
        return self.response_format is None and not self.tools


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an answer makes; `arguments` is a JSON text."""

    name: str
    arguments: str


class StructuredOutput(Protocol):
    """Makes answers keep to a form. It fails closed: what it cannot enforce it refuses with an InputError."""

    def make_constraint(self, form: AnswerForm) -> Constraint | None:
        """The constraint of one answer; called anew for each, in any thread.

        Raises:
            InputError: the form is broken or cannot be enforced.
        """
        ...

    def encode_tools(self, messages: Sequence[Mapping[str, Any]], form: AnswerForm) -> Sequence[int]:
        """Token ids of a conversation with tools: their descriptions, earlier calls and results.

        Raises:
            InputError: the model's chat template has no place for them.
        """
        ...

    def read_tool_calls(self, text: str, form: AnswerForm) -> tuple[str, tuple[ToolCall, ...]]:
        """The plain text of a complete answer, and the calls in it."""
        ...


def form_of(request: ChatRequest) -> AnswerForm:
    """The form that a request asks for.

    Raises:
        FieldError: a format, tool or choice is of an unknown kind.
    """
    format_ = request.response_format
    if format_ is not None:
        if format_.get("type") not in _FORMATS:
            raise FieldError("response_format.type", f"expected one of {', '.join(_FORMATS)}")
        if format_["type"] == "text":
            format_ = None
    tools = request.tools or []
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise FieldError(f"tools.{index}", 'expected {"type": "function", "function": {...}}')
        if not isinstance(function.get("name"), str):
            raise FieldError(f"tools.{index}.function.name", "expected a string")
    choice = request.tool_choice
    if isinstance(choice, str) and choice not in _CHOICES:
        raise FieldError("tool_choice", f"expected one of {', '.join(_CHOICES)}, or an object that names a function")
    if choice not in (None, "none", "auto") and not tools:
        raise FieldError("tool_choice", "there are no tools to choose from")
    if choice == "none":
        tools = []
    return AnswerForm(
        format_, tuple(tools), choice if choice is not None else "auto", request.parallel_tool_calls is not False
    )
