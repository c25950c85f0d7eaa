"""What a chat request asks of the form of its answer: OpenAI's `response_format`, `tools` and `tool_choice`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.runtime.engine._schema_check import check_schema, moved_references
from bitnet_onnx.runtime.engine.constraints import ConstraintFactory, embedded_schema
from bitnet_onnx.runtime.engine.request import Constraint
from bitnet_onnx.runtime.engine.tool_calls import (
    HERMES_CLOSE,
    HERMES_OPEN,
    MISTRAL_TAG,
    ToolCallParser,
    ToolFormat,
    detect_format,
    marker_ids,
)

_MAX_TOOLS = 128
_MAX_CALLS = 16
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ARGUMENTS: dict[ToolFormat, str] = {"hermes": "arguments", "mistral": "arguments", "llama3": "parameters"}


@dataclass(frozen=True, slots=True)
class ToolFunction:
    """A function that the model may ask for.

    Attributes:
        name: letters, digits, `_` and `-`.
        parameters: JSON schema of its arguments, unchecked; None: it takes none.
        source: the tool as it was given, for the chat template.
    """

    name: str
    parameters: object
    source: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """How an answer is prompted, constrained and read.

    Attributes:
        template_tools: `tools` of `encode_chat`.
        tool_format: how calls are written, or None where the answer is text whatever it holds.
    """

    template_tools: tuple[Mapping[str, object], ...] | None
    tool_format: ToolFormat | None
    _names: tuple[str, ...]
    _make: Callable[[], Constraint] | None
    _markers: Mapping[int, str]

    def constraint(self) -> Constraint | None:
        """A fresh constraint for one answer, or None.

        Raises:
            InputError, UnsupportedError: a schema is wrong or cannot be enforced.
        """
        return None if self._make is None else self._make()

    def parser(self) -> ToolCallParser | None:
        """A fresh parser for one answer, or None where it is text whatever it holds."""
        return None if self.tool_format is None else ToolCallParser(self.tool_format, self._names, self._markers)


def plan_output(
    factory: ConstraintFactory,
    template: str | None,
    *,
    response_format: object = None,
    tools: object = None,
    tool_choice: object = None,
    parallel_tool_calls: bool = True,
) -> OutputPlan:
    """Reads the fields of a chat request; absent ones are None.

    Args:
        factory: of the model.
        template: the package's chat template.
        response_format: `{"type": "text" | "json_object"}` or `{"type": "json_schema", "json_schema": {...}}`.
        tools: a list of `{"type": "function", "function": {"name", "description", "parameters", "strict"}}`.
        tool_choice: `auto`, `none`, `required` or `{"type": "function", "function": {"name"}}`.
        parallel_tool_calls: whether an answer may hold more than one call.

    Raises:
        InputError: a field has a wrong type or value.
        UnsupportedError: the template knows no tools.
    """
    content = _read_response_format(factory, response_format)
    offered = _read_tools(tools)
    chosen = _read_choice(tool_choice, offered)
    if chosen is None:
        make = None if content is None else content.make
        return OutputPlan(None, None, (), make, {})
    tool_format = detect_format(template or "")
    if tool_format is None:
        raise UnsupportedError("tools: the chat template of this model knows none; ask without tools")
    names = tuple(tool.name for tool in chosen.functions)
    plan = OutputPlan(
        tuple(tool.source for tool in offered),
        tool_format,
        names,
        None,
        marker_ids(tool_format, factory.control_tokens),
    )
    if not chosen.required and content is None:
        return plan
    free = None if chosen.required else content
    count = _MAX_CALLS if parallel_tool_calls else 1

    def make_calls() -> Constraint:
        return factory.trusted_grammar(_call_grammar(factory, tool_format, chosen.functions, count, free), "tools")

    return OutputPlan(plan.template_tools, tool_format, names, make_calls, plan._markers)


def constraint_for(
    factory: ConstraintFactory,
    template: str | None,
    response_format: object = None,
    tools: object = None,
    tool_choice: object = None,
) -> Constraint | None:
    """The constraint of `plan_output` alone."""
    plan = plan_output(factory, template, response_format=response_format, tools=tools, tool_choice=tool_choice)
    return plan.constraint()


@dataclass(frozen=True, slots=True)
class _Content:
    """A constrained answer without calls: its schema as it stands in a grammar, and how to make it alone."""

    schema: Callable[[], dict[str, object]]
    make: Callable[[], Constraint]


@dataclass(frozen=True, slots=True)
class _Choice:
    functions: tuple[ToolFunction, ...]
    required: bool


def _read_response_format(factory: ConstraintFactory, value: object) -> _Content | None:
    if value is None:
        return None
    where = "response_format"
    if not isinstance(value, Mapping) or not isinstance(kind := value.get("type"), str):
        raise InputError(f"{where} is no object with a type")
    if kind in ("text", "json_object"):
        _only(value, {"type"}, where)
        return None if kind == "text" else _Content(lambda: {"type": "object"}, factory.json_object)
    if kind != "json_schema":
        raise InputError(f"{where}.type is {kind!r:.40}, expected text, json_object or json_schema")
    _only(value, {"type", "json_schema"}, where)
    inner = value.get("json_schema")
    where = "response_format.json_schema"
    if not isinstance(inner, Mapping):
        raise InputError(f"{where} is no object")
    _only(inner, {"name", "description", "schema", "strict"}, where)
    _check_name(inner.get("name"), where)
    if not isinstance(inner.get("strict"), bool | None):
        raise InputError(f"{where}.strict is no boolean")
    if not isinstance(schema := inner.get("schema"), Mapping):
        raise InputError(f"{where}.schema is missing or no object")
    place = f"{where}.schema"
    return _Content(lambda: check_schema(schema, place), lambda: factory.json_schema(schema, place))


def _read_tools(value: object) -> tuple[ToolFunction, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > _MAX_TOOLS:
        raise InputError(f"tools is no list of at most {_MAX_TOOLS}")
    tools: dict[str, ToolFunction] = {}
    for index, tool in enumerate(value):
        where = f"tools[{index}]"
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise InputError(f"{where} is no object of the type function")
        _only(tool, {"type", "function"}, where)
        function = tool.get("function")
        if not isinstance(function, Mapping):
            raise InputError(f"{where}.function is no object")
        where += ".function"
        _only(function, {"name", "description", "parameters", "strict"}, where)
        name = _check_name(function.get("name"), where)
        if not isinstance(function.get("description"), str | None) or not isinstance(
            function.get("strict"), bool | None
        ):
            raise InputError(f"{where}: description is a text, strict a boolean")
        if not isinstance(function.get("parameters"), Mapping | None):
            raise InputError(f"{where}.parameters is no object")
        if name in tools:
            raise InputError(f"{where}.name {name} appears twice")
        # What templates show of `strict` would only confuse a model: it has never seen it.
        shown = {key: part for key, part in function.items() if key != "strict" and part is not None}
        tools[name] = ToolFunction(name, function.get("parameters"), {"type": "function", "function": shown})
    return tuple(tools.values())


def _read_choice(value: object, tools: tuple[ToolFunction, ...]) -> _Choice | None:
    """The functions that may be called; None: none of them."""
    if value is None:
        value = "auto"
    if isinstance(value, str):
        if value not in ("auto", "none", "required"):
            raise InputError(f"tool_choice is {value!r:.40}, expected auto, none, required or a function")
        if value == "required" and not tools:
            raise InputError("tool_choice is required, but there are no tools")
        return None if value == "none" or not tools else _Choice(tools, value == "required")
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or value.get("type") != "function" or not isinstance(function, Mapping):
        raise InputError("tool_choice is neither auto, none, required nor an object of the type function")
    _only(value, {"type", "function"}, "tool_choice")
    _only(function, {"name"}, "tool_choice.function")
    named = tuple(tool for tool in tools if tool.name == function.get("name"))
    if not named:
        raise InputError(f"tool_choice names the function {function.get('name')!r:.80}, which is not among the tools")
    return _Choice(named, True)


def _call_grammar(
    factory: ConstraintFactory,
    tool_format: ToolFormat,
    functions: tuple[ToolFunction, ...],
    count: int,
    content: _Content | None,
) -> str:
    """Calls in the template's format; with `content` an answer by its schema may stand in their place."""
    options: list[object] = []
    parameters: dict[str, object] = {}
    for index, function in enumerate(functions):
        parameters[str(index)] = _parameters(function, f"#/$defs/{index}")
        options.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function.name},
                    _ARGUMENTS[tool_format]: {"$ref": f"#/$defs/{index}"},
                },
                "required": ["name", _ARGUMENTS[tool_format]],
                "additionalProperties": False,
            }
        )
    calls: dict[str, object] = {"anyOf": options, "$defs": parameters}
    if tool_format == "mistral":
        calls = {"type": "array", "items": {"anyOf": options}, "minItems": 1, "maxItems": count, "$defs": parameters}
        body = f'{_marker(factory, MISTRAL_TAG)} " "? json_calls'
    elif tool_format == "hermes":
        body = f'call ("\\n" call){{0,{count - 1}}}' if count > 1 else "call"
    else:
        body = "json_calls"
    rules = [f"start: {body}" if content is None else f"start: content | calls\ncalls: {body}"]
    if tool_format == "hermes":
        opened, closed = _marker(factory, HERMES_OPEN), _marker(factory, HERMES_CLOSE)
        rules.append(f'call: {opened} "\\n" json_calls "\\n" {closed}')
    rules.append(f"json_calls: %json {embedded_schema(calls)}")
    if content is not None:
        rules.append(f"content: %json {embedded_schema(content.schema())}")
    return "\n".join(rules) + "\n"


def _parameters(function: ToolFunction, prefix: str) -> dict[str, object]:
    where = f"tools: parameters of {function.name}"
    if function.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = check_schema(function.parameters, where)
    if schema.setdefault("type", "object") != "object":
        raise InputError(f"{where}: type is {schema['type']!r:.40}, expected object")
    return moved_references(schema, prefix)


def _marker(factory: ConstraintFactory, text: str) -> str:
    token = factory.control_tokens.get(text)
    return json.dumps(text) if token is None else f"<[{token}]>"


def _check_name(value: object, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InputError(f"{where}.name is {value!r:.80}, expected 1 to 64 letters, digits, _ and -")
    return value


def _only(value: Mapping[str, object], known: set[str], where: str) -> None:
    if unknown := sorted(str(key) for key in value if key not in known):
        raise InputError(f"{where}: unknown field {unknown[0]!r:.80}")
