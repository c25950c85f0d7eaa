"""What the server asks of whoever gives answers a form: constraints, and calls of tools out of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.engine.request import Constraint
from bitnet_onnx.runtime.engine.tool_calls import Delta
from bitnet_onnx.runtime.server.errors import FieldError
from bitnet_onnx.runtime.server.schemas import ChatRequest

_FIELDS = ("response_format", "tools", "tool_choice")


class AnswerParser(Protocol):
    """Splits one answer into text and calls as it arrives."""

    def push(self, text: str, token: int | None = None) -> list[Delta]:
        """What became certain with one more token."""
        ...

    def finish(self) -> list[Delta]:
        """What is left at the end."""
        ...


class AnswerPlan(Protocol):
    """How the answers to one request are prompted, constrained and read."""

    @property
    def template_tools(self) -> Sequence[Mapping[str, object]] | None:
        """What the chat template is told of tools."""
        ...

    def constraint(self) -> Constraint | None:
        """A fresh constraint for one answer.

        Raises:
            InputError: it cannot be enforced.
        """
        ...

    def parser(self) -> AnswerParser | None:
        """A fresh parser for one answer; None: it is text whatever it holds."""
        ...


class PlanAnswer(Protocol):
    """Reads the fields of a request that shape its answer; fails closed."""

    def __call__(
        self, *, response_format: object, tools: object, tool_choice: object, parallel_tool_calls: bool
    ) -> AnswerPlan:
        """The plan for them.

        Raises:
            InputError: a field is wrong or cannot be enforced.
        """
        ...


def plan_of(request: ChatRequest, plan_answer: PlanAnswer | None) -> AnswerPlan | None:
    """The plan of a request; None: any text will do.

    Raises:
        FieldError: a field is wrong, or nobody is there to enforce it.
    """
    plain_format = request.response_format in (None, {"type": "text"})
    if plain_format and not request.tools and request.tool_choice in (None, "none", "auto"):
        return None
    if plan_answer is None:
        field = "tools" if plain_format else "response_format"
        raise FieldError(field, "this server cannot enforce it, and refuses rather than ignores it")
    try:
        return plan_answer(
            response_format=request.response_format,
            tools=request.tools,
            tool_choice=request.tool_choice,
            parallel_tool_calls=request.parallel_tool_calls is not False,
        )
    except InputError as error:
        raise shape_error(error) from None


def shape_error(error: InputError) -> FieldError:
    """An error about the form of an answer, with the field that its message begins with."""
    field = next((name for name in _FIELDS if str(error).startswith(name)), None)
    refusal = FieldError(None, str(error))
    refusal.param = field
    return refusal
