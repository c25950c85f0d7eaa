from __future__ import annotations

import datetime as dt
import ipaddress
import json
import re
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import llguidance
import numpy as np
import pytest
from constrained import sample, sentencepiece_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import byte_tokenizer
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

from bitnet_onnx.errors import BitnetOnnxError, InputError, PackageError, UnsupportedError
from bitnet_onnx.limited_process import Limits, ProcessEndedError
from bitnet_onnx.runtime import PackageInfo
from bitnet_onnx.runtime.engine import _grammar_trial, constraints
from bitnet_onnx.runtime.engine._token_bytes import Spelling, token_bytes
from bitnet_onnx.runtime.engine.constraints import ConstraintError, ConstraintFactory, GrammarConstraint
from bitnet_onnx.runtime.engine.request import EngineBusyError
from bitnet_onnx.runtime.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Bench:
    """A factory, and what a test needs to draw answers."""

    factory: ConstraintFactory
    tokenizer: Tokenizer
    stop: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, stop: int, vocab_size: int | None = None) -> Bench:
        size = tokenizer.get_vocab_size() if vocab_size is None else vocab_size
        return cls(ConstraintFactory(tokenizer.to_str().encode(), size, [stop]), tokenizer, (stop,))

    def decode(self, ids: Any) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def draw(self, constraint: GrammarConstraint, seed: int = 0) -> str:
        closing = [token for text in '"}]' if (token := self.tokenizer.token_to_id(text)) is not None]
        return sample(constraint, self.decode, closing, self.stop, seed=seed)


BYTES = {byte: byte_tokenizer().token_to_id(name) for byte, name in ((ord(text), text) for text in "abcxyn")}


@pytest.fixture(scope="module")
def tiny() -> Bench:
    """Every byte a token; more logits than tokens, as padded vocabularies have."""
    return Bench.of(byte_tokenizer(), 258, 320)


@pytest.fixture(scope="module")
def smollm2(zoo_package: Path) -> Bench:
    package = PackageInfo.open(zoo_package)
    tokenizer = TextTokenizer(package)
    factory = ConstraintFactory(tokenizer, package.architecture.vocab_size, package.eos_token_ids)
    return Bench(factory, tokenizer.inner, package.eos_token_ids)


SCHEMAS: dict[str, dict[str, Any]] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "types": {"type": ["integer", "null", "string"], "maxLength": 5},
    "integer": {"type": "integer", "minimum": -17, "maximum": 1234},
    "exclusive": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1.5},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 10_000},
    "cents": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 100},
    "string": {"type": "string"},
    "length": {"type": "string", "minLength": 3, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "pattern unanchored": {"type": "string", "pattern": "b+c", "maxLength": 40},
    "enum": {"enum": ["a", "\u00e9\n\"", 1, 2.5, None, True, [1, {"x": 2}], {"k": "v"}]},
    "const": {"const": {"a": [1, 2, "\\"]}},
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}], "items": False, "minItems": 2},
    "object": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 4}, "c": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "extra": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 4,
    },
    "required beyond properties": {"type": "object", "required": ["z"], "additionalProperties": {"type": "integer"}},
    "patternProperties": {
        "type": "object",
        "patternProperties": {"^x[0-9]$": {"type": "integer"}},
        "additionalProperties": False,
    },
    "pattern and property": {
        "type": "object",
        "properties": {"ab": {"type": ["string", "integer"], "maxLength": 3}},
        "required": ["ab"],
        "patternProperties": {"^a": {"type": "integer"}},
        "additionalProperties": False,
    },
    "minProperties": {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1},
    "anyOf": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"const": 0}}]},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
    "siblings": {"anyOf": [{"minimum": 5}, {"maximum": -5}], "type": "integer"},
    "ref": {"$defs": {"p/q~": {"type": "integer"}}, "items": {"$ref": "#/$defs/p~1q~0"}, "type": "array"},
    "recursive": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "boolean"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "notes": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/x",
        "title": "t",
        "description": "d",
        "type": "boolean",
        "default": True,
        "examples": [{"$ref": 1}],
        "$comment": "c",
        "deprecated": True,
    },
    "draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"type": "integer"}],
        "additionalItems": False,
    },
}  # fmt: skip

FORMATS: dict[str, Callable[[str], object]] = {
    "date": dt.date.fromisoformat,
    "uuid": uuid.UUID,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "email": re.compile(r"[^@]+@[^@]+", re.DOTALL).fullmatch,
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_answers_are_valid_by_their_schema(tiny: Bench, name: str) -> None:
    validator = jsonschema.validators.validator_for(SCHEMAS[name])(SCHEMAS[name])
    for seed in range(8):
        validator.validate(json.loads(tiny.draw(tiny.factory.json_schema(SCHEMAS[name]), seed)))


@pytest.mark.parametrize("name", FORMATS)
def test_random_answers_have_the_format(tiny: Bench, name: str) -> None:
    for seed in range(4):
        constraint = tiny.factory.json_schema({"type": "string", "format": name})
        assert FORMATS[name](json.loads(tiny.draw(constraint, seed)))


@pytest.mark.zoo
@pytest.mark.parametrize("name", SCHEMAS)
def test_random_answers_of_a_real_vocabulary_are_valid(smollm2: Bench, name: str) -> None:
    for seed in range(3):
        answer = json.loads(smollm2.draw(smollm2.factory.json_schema(SCHEMAS[name]), seed))
        jsonschema.validate(answer, SCHEMAS[name])


_LEAVES = st.sampled_from(
    [SCHEMAS[name] for name in ("null", "boolean", "integer", "exclusive", "multiple", "length", "enum", "const")]
)


def _containers(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "b", '\u00e9 "', "name"])
    objects = st.builds(
        lambda properties, extra, needed: {
            "type": "object",
            "properties": properties,
            "required": sorted(properties)[:needed],
            "additionalProperties": extra,
        },
        st.dictionaries(names, parts, max_size=3),
        st.one_of(st.just(False), parts),
        st.integers(0, 3),
    )
    arrays = st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        parts,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    return st.one_of(objects, arrays, st.builds(lambda a, b: {"anyOf": [a, b]}, parts, parts))


@settings(max_examples=60, deadline=None)
@given(schema=st.recursive(_LEAVES, _containers, max_leaves=6), seed=st.integers(0, 1000))
def test_answers_to_any_small_schema_are_valid(tiny: Bench, schema: dict[str, Any], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constraints, "run_limited", _in_this_process)
        jsonschema.validate(json.loads(tiny.draw(tiny.factory.json_schema(schema), seed)), schema)


def _in_this_process(worker: Path, request: bytes, limits: Limits) -> dict[str, object]:
    assert worker.name == "_grammar_trial.py"
    return _grammar_trial.answer(request)


def test_any_object_is_json(tiny: Bench) -> None:
    for seed in range(8):
        assert isinstance(json.loads(tiny.draw(tiny.factory.json_object(), seed)), dict)


def test_patterns_choices_and_grammars(tiny: Bench) -> None:
    for seed in range(6):
        assert re.fullmatch(r"[a-z]{2,5}-\d+", tiny.draw(tiny.factory.regex(r"[a-z]{2,5}-[0-9]+"), seed))
        choices = ["yes", "yes!", 'n\u00e9 "q" / \\ \n', "\u65e5\u672c", "(a|b)*"]
        assert tiny.draw(tiny.factory.choice(choices), seed) in choices
        lark = 'start: "a" b+ %json {"type": "boolean"}\nb: "x" | "y"'
        assert re.fullmatch(r"a[xy]+\s*(true|false)", tiny.draw(tiny.factory.grammar(lark), seed))


def test_the_end_is_allowed_exactly_where_the_answer_is_whole(tiny: Bench) -> None:
    constraint = tiny.factory.regex("ab?")
    assert list(np.flatnonzero(constraint.allowed())) == [BYTES[ord("a")]]
    assert not constraint.complete
    constraint.accept(BYTES[ord("a")])
    assert set(np.flatnonzero(constraint.allowed())) == {BYTES[ord("b")], 258}
    assert not constraint.complete
    constraint.accept(BYTES[ord("b")])
    assert constraint.complete
    assert list(np.flatnonzero(constraint.allowed())) == [258]
    constraint.accept(258)
    assert constraint.complete
    with pytest.raises(ConstraintError, match="follows the end"):
        constraint.accept(258)


def test_masks_have_the_size_of_the_logits_and_no_control_token(tiny: Bench) -> None:
    mask = tiny.factory.regex(r"(.|\n)*").allowed()
    assert mask.dtype == np.bool_
    assert mask.shape == (320,)
    assert mask[[256, 257, *range(259, 320)]].sum() == 0
    assert mask[258]


@pytest.mark.parametrize("token", [0, 256, 319, -1, 320, 258])
def test_what_is_not_allowed_ends_the_answer(tiny: Bench, token: int) -> None:
    constraint = tiny.factory.choice(["yes", "no"])
    assert token < 0 or token >= 320 or not constraint.allowed()[token]
    with pytest.raises(ConstraintError, match=f"token {token}|cannot be followed"):
        constraint.accept(token)


def test_a_failed_constraint_stays_failed(tiny: Bench) -> None:
    constraint = tiny.factory.choice(["yes", "no"])
    for _ in range(2):
        with pytest.raises(ConstraintError):
            constraint.accept(BYTES[ord("x")])
        with pytest.raises(ConstraintError):
            constraint.allowed()
        assert not constraint.complete


def test_a_step_beyond_the_limits_ends_the_answer(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConstraintFactory, "_try", lambda *_: None)
    with pytest.raises(BitnetOnnxError, match="cannot be followed: lexer error"):
        tiny.draw(tiny.factory.regex(r"(\w{1,500}|\d{2,900}){400}"))
    constraint = tiny.factory.regex("a")
    monkeypatch.setattr(constraints, "_MAX_MASK_SECONDS", -1.0)
    with pytest.raises(ConstraintError, match="too complex"):
        constraint.allowed()


def test_a_grammar_that_the_vocabulary_cannot_spell_is_an_error() -> None:
    factory = ConstraintFactory(byte_tokenizer().to_str().encode(), 100, [0])  # no byte of other scripts
    with pytest.raises(ConstraintError, match=r"none of the model's tokens|no text satisfies it"):
        factory.choice(["\u00e9", "\u65e5"]).allowed()


def test_long_forced_text_is_cut_as_the_tokenizer_cuts_it() -> None:
    tokenizer = sentencepiece_tokenizer()
    text = "yes {yes a1 \u00e9\u65e5" * 60
    tokens = token_bytes(tokenizer, 290, [2])
    spelling = Spelling(tokenizer, tokens.tokens, tokens.control)
    begin = spelling(text)
    assert 0 < len(begin) < len(spelling(text[:512]))
    constraint = ConstraintFactory(tokenizer.to_str().encode(), 290, [2]).choice([text])
    ids: list[int] = []
    while not constraint.complete:
        (token,) = np.flatnonzero(constraint.allowed())
        constraint.accept(int(token))
        ids.append(int(token))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert ids[: len(begin)] == begin


class Panic(BaseException):
    """As the bindings raise what their library did not foresee."""


def test_what_the_library_only_warns_of_or_panics_at_is_refused(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lenient = 'start: %json {"x-guidance": {"lenient": true}, "type": "array", "uniqueItems": true}'
    with pytest.raises(UnsupportedError, match="cannot be followed whole"):
        tiny.factory.trusted_grammar(lenient, "tools")

    class Matcher:
        grammar_from_regex = llguidance.LLMatcher.grammar_from_regex

        def __init__(self, *_: object, **__: object) -> None:
            raise Panic("index out of bounds")

    tiny.factory.regex("tried")
    monkeypatch.setattr(llguidance, "LLMatcher", Matcher)
    with pytest.raises(InputError, match="regex cannot be followed: index out of bounds"):
        tiny.factory.regex("tried")


def test_constraints_of_one_factory_know_nothing_of_each_other(tiny: Bench) -> None:
    one, other = (tiny.factory.choice(["ab", "ac"]) for _ in range(2))
    one.accept(BYTES[ord("a")])
    assert list(np.flatnonzero(other.allowed())) == [BYTES[ord("a")]]


def test_a_model_without_an_end_token_ends_when_the_answer_is_whole() -> None:
    factory = ConstraintFactory(byte_tokenizer().to_str().encode(), 259, [])
    constraint = factory.choice(["a"])
    constraint.accept(BYTES[ord("a")])
    assert constraint.complete


def test_sentencepiece_vocabularies_spell_bytes_and_spaces() -> None:
    bench = Bench.of(sentencepiece_tokenizer(), 2, 300)

    def pieces(*choices: str) -> set[str]:
        return {
            bench.tokenizer.id_to_token(int(token)) for token in np.flatnonzero(bench.factory.choice(choices).allowed())
        }

    assert pieces("yes", "\u00e9") == {"y", "ye", "yes", "<0x79>", "<0xC3>", "\u00e9"}
    assert pieces(" yes", "\u00e9") == {"\u2581", "\u2581yes", "<0x20>", "<0xC3>", "\u00e9"}
    # What can only go on in one way is cut as the tokenizer cuts it within a text: no space in front.
    assert pieces("yes") == {"yes"}
    assert pieces(" yes") == {"\u2581yes"}
    assert pieces("\u65e5") == {"<0xE6>"}
    assert "<0xZZ>" in pieces("<0xZZ>", "\u00e9")
    for seed in range(5):
        answer = json.loads(bench.draw(bench.factory.json_schema(SCHEMAS["object"]), seed))
        jsonschema.validate(answer, SCHEMAS["object"])


def test_metaspace_vocabularies_too() -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.normalizer, tokenizer.decoder = None, decoders.Metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    bench = Bench.of(tokenizer, 2)
    for text in (" yes", "yes"):
        allowed = np.flatnonzero(bench.factory.choice([text]).allowed())
        assert [tokenizer.id_to_token(int(token)) for token in allowed] == [text.replace(" ", "\u2581")]


def test_text_that_a_tokenizer_would_change_is_spelt_as_it_is() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.normalizer = normalizers.Lowercase()
    bench = Bench.of(tokenizer, 258)
    assert bench.draw(bench.factory.choice(["ABC"])) == "ABC"


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.CTC()])
def test_a_vocabulary_whose_spelling_is_unknown_is_refused(decoder: Any) -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.decoder = decoder
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json"):
        Bench.of(tokenizer, 2)


def test_added_tokens_that_are_text_are_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<tool_call>", "\u00e9t\u00e9 "])
    bench = Bench.of(tokenizer, 258)
    assert bench.factory.choice(["<tool_call>"]).allowed()[tokenizer.token_to_id("<tool_call>")]
    assert bench.factory.choice(["\u00e9t\u00e9 1"]).allowed()[tokenizer.token_to_id("\u00e9t\u00e9 ")]


def test_wrong_arguments_of_the_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="end token 999"):
        ConstraintFactory(byte_tokenizer().to_str().encode(), 259, [999])
    with pytest.raises(PackageError, match=r"tokenizer\.json"):
        ConstraintFactory(b"{}", 259, [])
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'bitnet-onnx\[serve\]'"):
        ConstraintFactory(byte_tokenizer().to_str().encode(), 259, [])


def test_a_grammar_is_tried_once(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[bytes] = []

    def run(worker: Path, request: bytes, limits: Limits) -> dict[str, object]:
        runs.append(request)
        return {"megabytes": 1}

    monkeypatch.setattr(constraints, "run_limited", run)
    monkeypatch.setattr(constraints, "_REMEMBERED_TRIALS", 1)
    for pattern in ("once", "once", "twice", "once"):
        tiny.factory.regex(pattern)
    assert len(runs) == 3


@pytest.mark.parametrize("status", [None, -9, 1])
def test_a_trial_without_an_answer_is_a_refusal(
    tiny: Bench, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(worker: Path, request: bytes, limits: Limits) -> NoReturn:
        raise ProcessEndedError(worker, status)

    monkeypatch.setattr(constraints, "run_limited", run)
    with pytest.raises(InputError, match="takes more than 5 s or 768 MB"):
        tiny.factory.regex("never tried before")


def test_what_takes_much_memory_is_refused(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "run_limited", lambda *_: {"megabytes": 97})
    with pytest.raises(InputError, match="97 MB, above the limit of 96"):
        tiny.factory.regex("large")


def test_too_many_new_grammars_at_once_are_asked_to_wait(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "_MAX_WAIT_SECONDS", 0.01)
    begun, done = threading.Semaphore(0), threading.Event()

    def run(worker: Path, request: bytes, limits: Limits) -> dict[str, object]:
        begun.release()
        done.wait(60)
        return {"megabytes": 1}

    monkeypatch.setattr(constraints, "run_limited", run)
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(tiny.factory.regex, f"slow {index}") for index in range(2)]
        begun.acquire()
        begun.acquire()
        try:
            with pytest.raises(EngineBusyError, match="too many new grammars"):
                tiny.factory.regex("late")
        finally:
            done.set()
        assert all(other.result() is not None for other in others)
    assert tiny.factory.regex("late") is not None


def test_the_trial_is_asked_in_json() -> None:
    for grammar, words in (("start: /ab*/ <s> <[2]>", "megabytes"), ("start: (", "error")):
        request = {"grammar": grammar, "vocab_size": 3, "control": {"<s>": 1}, "limits": {"verbose_errors": False}}
        assert set(_grammar_trial.answer(json.dumps(request).encode())) == {words}
