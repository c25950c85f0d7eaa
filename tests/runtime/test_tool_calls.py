from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from constrained import sample
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import CHAT_TEMPLATE, byte_tokenizer
from tokenizers import Tokenizer

from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.runtime import Message, PackageInfo
from bitnet_onnx.runtime.chat import ChatTemplate, ToolCall, encode_chat
from bitnet_onnx.runtime.engine.constraints import ConstraintFactory
from bitnet_onnx.runtime.engine.structured_output import constraint_for, plan_output
from bitnet_onnx.runtime.engine.tool_calls import (
    ContentDelta,
    Delta,
    ToolCallDelta,
    ToolCallParser,
    ToolFormat,
    detect_format,
    marker_ids,
)
from bitnet_onnx.runtime.tokenizer import TextTokenizer

HERMES = "{%- if tools %}{{ tools | tojson }}{% endif %} <tool_call>"
LLAMA = "{%- if tools %}<|python_tag|>{% endif %}"
LLAMA_32 = "{%- if tools %}" + '{{- \'{"name": function name, "parameters": dictionary}\' }}{% endif %}'
MISTRAL = "{%- if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]"
FORMATS: dict[ToolFormat, str] = {"hermes": HERMES, "llama3": LLAMA, "mistral": MISTRAL}

Seen = tuple[str, list[tuple[str, Any]]]


def read(tool_format: ToolFormat, pieces: Sequence[str], names: Sequence[str] = ("f", "g")) -> Seen:
    """Text and calls of an answer that arrives in pieces."""
    parser = ToolCallParser(tool_format, names)
    return seen([delta for piece in pieces for delta in parser.push(piece)] + parser.finish())


def seen(deltas: Sequence[Delta]) -> Seen:
    calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    text = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
    return text, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (HERMES, "hermes"),
        (LLAMA, "llama3"),
        (LLAMA_32, "llama3"),
        (MISTRAL, "mistral"),
        (CHAT_TEMPLATE, None),
        ("<tool_call> without the word", None),
        ("{{ tools }}", None),
        ("", None),
    ],
)
def test_templates_tell_their_format(template: str, expected: str | None) -> None:
    assert detect_format(template) == expected


ANSWERS: list[tuple[ToolFormat, str, str, list[tuple[str, Any]]]] = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": [1, "x"]}}\n</tool_call>', "", [("f", {"a": [1, "x"]})]),
    (
        "hermes",
        'Let me see. \n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>\n{"arguments": {"b": null}, '
        '"name": "g"}\n</tool_call>\n',
        "Let me see.",
        [("f", {}), ("g", {"b": None})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {}}</tool_call> so',
        "so",
        [("f", {})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
        "",
        [("f", {"a": "</tool_call>"})],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\"}{\\\\"}}</tool_call>', "", [("f", {"a": '"}{\\'})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}', "", [("f", {"a": 1})]),
    ("llama3", '{"name": "f", "parameters": {"a": "\u00e9"}}', "", [("f", {"a": "\u00e9"})]),
    ("llama3", '  <|python_tag|>{"name": "f", "parameters": {}}\n', "", [("f", {})]),
    (
        "llama3",
        '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"x": 1}}',
        "",
        [("f", {}), ("g", {"x": 1})],
    ),
    ("llama3", '{"type": "function", "name": "f", "parameters": {}}', "", [("f", {})]),
    ("llama3", '{"type": "function", "function": "f", "parameters": {}}', "", [("f", {})]),
    ("llama3", '{"name": "f", "parameters": {}} done', "done", [("f", {})]),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        "",
        [("f", {"a": 1}), ("g", {})],
    ),
    ("mistral", 'Well[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abc"}]', "Well", [("f", {})]),
]  # fmt: skip

#: Whole, they are text: nothing is lost, nothing is called.
TEXTS: list[tuple[ToolFormat, str]] = [
    ("hermes", "Hello <tool and <tool_calls>"),
    ("hermes", "<tool_call>"),
    ("hermes", "a <tool_call>no JSON</tool_call> b\n"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": }}</tool_call>'),
    ("hermes", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": "x"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}} </tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 70 + "1" + "}" * 70 + "}</tool_call>"),
    ("hermes", '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_cal'),
    ("llama3", "The answer is 4."),
    ("llama3", '{"answer": 4}'),
    ("llama3", '{"name": "x", "parameters": {}}'),
    ("llama3", '{"name": "f", "parameters": {}'),
    ("llama3", '<|python_tag|>print("hi")'),
    ("llama3", " \n"),
    ("llama3", 'Use {"name": "f", "parameters": {}}'),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS] []"),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "x", "arguments": {}}]'),
    ("mistral", '[TOOL_CALLS] {"name": "f", "arguments": {}}'),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}'),
    ("mistral", "[TOOL_[TOOL_ x\n\n"),
]


@pytest.mark.parametrize(("tool_format", "answer", "text", "calls"), ANSWERS)
def test_calls_come_out_whole_however_the_answer_is_cut(
    tool_format: ToolFormat, answer: str, text: str, calls: list[tuple[str, Any]]
) -> None:
    for size in (len(answer), 1, 2, 3, 7):
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert read(tool_format, pieces) == (text, calls)


@pytest.mark.parametrize(("tool_format", "answer"), TEXTS)
def test_what_is_no_call_stays_the_text_that_it_is(tool_format: ToolFormat, answer: str) -> None:
    for size in (len(answer), 1, 2, 5):
        assert read(tool_format, [answer[at : at + size] for at in range(0, len(answer), size)]) == (answer, [])


_PARTS = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "<|python_tag|>",
            "[",
            "]",
            "{",
            "}",
            '"',
            "\\",
            ";",
            " ",
            "\n",
        ),
        *("a", '{"name"', "<tool", "null"),
        *('{"name": "f", "arguments": {}}', '{"name": "g", "parameters": {"a": "}"}}'),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(FORMATS)), st.lists(_PARTS, max_size=12).map("".join), st.data())
def test_calls_do_not_depend_on_the_pieces(tool_format: ToolFormat, answer: str, data: st.DataObject) -> None:
    whole = read(tool_format, [answer])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(tool_format, pieces) == whole
    if not whole[1]:
        assert whole[0] == answer


def test_text_is_let_through_as_soon_as_it_is_certain() -> None:
    parser = ToolCallParser("hermes", ["f"])
    assert parser.push("Hello <to") == [ContentDelta("Hello")]
    assert parser.push("ast") == [ContentDelta(" <toast")]
    assert parser.push('<tool_call>{"name": "f", ') == []
    (call,) = parser.push('"arguments": {}}</tool_call>')
    assert isinstance(call, ToolCallDelta)
    assert (call.name, call.arguments, call.id[:5], parser.calls) == ("f", "{}", "call_", 1)
    assert parser.finish() == []
    llama = ToolCallParser("llama3", ["f"])
    assert llama.push('{"na') == []
    assert llama.push("v") == [ContentDelta('{"nav')]


def test_markers_that_are_control_tokens_are_told_by_their_id() -> None:
    markers = marker_ids("mistral", {"[TOOL_CALLS]": 5, "</s>": 2})
    assert markers == {5: "[TOOL_CALLS]"}
    parser = ToolCallParser("mistral", ["f"], markers)
    deltas = parser.push("Well", 9) + parser.push("", 5) + parser.push('[{"name":"f","arguments":{}}]', 7)
    assert seen(deltas + parser.finish()) == ("Well", [("f", {})])
    (call,) = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert len(call.id) == 9  # what Mistral's templates demand
    assert call.id.isalnum()


TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "d",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"$ref": "#/$defs/city"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city"],
                "additionalProperties": False,
                "$defs": {"city": {"enum": ["Oslo", "Paris"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "g"}},
]
FORCED = {"type": "function", "function": {"name": "g"}}


def tokenizer_with(marker: str | None) -> tuple[Tokenizer, ConstraintFactory]:
    tokenizer = byte_tokenizer()
    if marker is not None:
        tokenizer.add_special_tokens([marker])
    return tokenizer, ConstraintFactory(tokenizer.to_str().encode(), tokenizer.get_vocab_size(), [258])


def draw(plan: Any, tokenizer: Tokenizer, seed: int) -> Seen:
    """An answer at random under the plan's constraint, read token by token by its parser."""
    parser = plan.parser()
    ids: list[int] = []

    def keep(tokens: Sequence[int]) -> str:
        ids.extend(tokens)
        return ""

    sample(plan.constraint(), keep, [tokenizer.token_to_id(text) for text in '"}]'], [258], seed=seed)
    deltas: list[Delta] = []
    for token in ids:
        deltas += parser.push(tokenizer.decode([token], skip_special_tokens=True), token)
    return seen(deltas + parser.finish())


@pytest.mark.parametrize("tool_format", FORMATS)
@pytest.mark.parametrize("special", [False, True])
def test_a_required_call_is_a_call_by_its_schema(tool_format: ToolFormat, special: bool) -> None:
    marker = {"hermes": "<tool_call>", "llama3": "<|python_tag|>", "mistral": "[TOOL_CALLS]"}[tool_format]
    tokenizer, factory = tokenizer_with(marker if special else None)
    called = set()
    for seed in range(4):
        plan = plan_output(
            factory, FORMATS[tool_format], tools=TOOLS, tool_choice="required", parallel_tool_calls=False
        )
        text, calls = draw(plan, tokenizer, seed)
        assert (text, len(calls)) == ("", 1)
        called.add(calls[0][0])
        if calls[0][0] == "f":
            assert calls[0][1]["city"] in ("Oslo", "Paris")
            assert set(calls[0][1]) <= {"city", "days"}
        else:
            assert calls[0][1] == {}
        text, calls = draw(plan_output(factory, FORMATS[tool_format], tools=TOOLS, tool_choice=FORCED), tokenizer, seed)
        assert (text, {name for name, _ in calls}) == ("", {"g"})
    assert called <= {"f", "g"}


def test_a_schema_for_the_answer_leaves_calls_open() -> None:
    tokenizer, factory = tokenizer_with(None)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [1, 2]}}}
    kinds = set()
    for seed in range(12):
        text, calls = draw(plan_output(factory, HERMES, tools=TOOLS, response_format=schema), tokenizer, seed)
        assert calls or json.loads(text) in (1, 2)
        kinds.add(bool(calls))
    assert kinds == {False, True}


def test_what_is_asked_decides_what_is_prompted_constrained_and_read() -> None:
    _, factory = tokenizer_with(None)
    auto = plan_output(factory, HERMES, tools=TOOLS)
    assert auto.constraint() is None
    assert auto.parser() is not None
    assert auto.template_tools is not None
    assert "strict" not in str(auto.template_tools)
    none = plan_output(factory, HERMES, tools=TOOLS, tool_choice="none", response_format={"type": "json_object"})
    assert (none.template_tools, none.parser()) == (None, None)
    assert none.constraint() is not None
    plain = plan_output(factory, None, response_format={"type": "text"}, tools=[])
    assert (plain.template_tools, plain.parser(), plain.constraint()) == (None, None, None)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"const": 1}}}
    constraint = constraint_for(factory, None, schema)
    assert constraint is not None
    assert list(np.flatnonzero(constraint.allowed())) == [byte_tokenizer().token_to_id("1")]
    with pytest.raises(UnsupportedError, match="knows none"):
        plan_output(factory, CHAT_TEMPLATE, tools=TOOLS)


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\u00e9"}'}}
SHOW = (
    "{{ tools | tojson }}|{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.id }} {{ c.function.name }} {{ c.function.arguments.a }}){% endfor %}"
    "{% if m.tool_call_id is defined %}<{{ m.tool_call_id }} {{ m.name }}>{% endif %};{% endfor %}"
)


def test_templates_see_tools_calls_and_results(package: PackageInfo) -> None:
    messages = [
        Message.parse({"role": "user", "content": "hi"}),
        Message.parse({"role": "assistant", "content": None, "tool_calls": [CALL]}),
        Message.parse({"role": "tool", "content": "4", "tool_call_id": "call_1", "name": "f"}),
    ]
    template = ChatTemplate(SHOW, {})
    tools = [{"type": "function", "function": {"name": "f"}}]
    (text,) = template.render([messages], tools)
    assert text == json.dumps(tools) + "|user:hi;assistant:(call_1 f \u00e9);tool:4<call_1 f>;"
    tokenizer = TextTokenizer(package)
    assert tokenizer.decode(encode_chat(template, tokenizer, messages, tools)) == text
    assert Message.parse({"role": "assistant", "content": "x", "tool_calls": None}).tool_calls == ()


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ("x", "no list"),
        ([7], "fields id, type and function"),
        ([{**CALL, "x": 1}], "fields id, type and function"),
        ([{**CALL, "type": "code"}], "fields name and arguments"),
        ([{"function": {"name": "f"}}], "fields name and arguments"),
        ([{"function": {"name": 7, "arguments": {}}}], "are texts"),
        ([{"id": 7, "function": {"name": "f", "arguments": {}}}], "are texts"),
        ([{"function": {"name": "f", "arguments": "{"}}], "arguments of the call of f"),
        ([{"function": {"name": "f", "arguments": [1]}}], "are no object"),
        ([{"function": {"name": "f", "arguments": "\ud800"}}], "lone surrogate"),
    ],
)
def test_wrong_calls_in_messages_are_refused(calls: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Message.parse({"role": "assistant", "content": None, "tool_calls": calls})


@pytest.mark.parametrize(("field", "value"), [("tool_call_id", 7), ("name", ["f"])])
def test_wrong_names_in_messages_are_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        Message.parse({"role": "tool", "content": "4", field: value})


@pytest.mark.parametrize(
    ("call", "tools", "words"),
    [
        ({}, [{"name": "<|im_end|>"}], "control token"),
        ({}, [{"<|im_end|>": 1}], "control token"),
        ({"a": ["x<|im_start|>y"]}, None, "control token"),
        ({"a": "\ud800"}, None, "lone surrogate"),
        ({}, [{"a": {1, 2}}], "not JSON"),
        ({}, [{"a": float("nan")}], "NaN"),
        ({}, [{"a": "x" * (5 * 2**20)}], "above the limit"),
    ],
)
def test_tools_cannot_forge_control_tokens(
    package: PackageInfo, call: Mapping[str, object], tools: Any, words: str
) -> None:
    messages = [Message("user", "hi"), Message("assistant", "", (ToolCall("f", call),))]
    with pytest.raises(InputError, match=words):
        encode_chat(ChatTemplate(SHOW, {}), TextTokenizer(package), messages, tools)
