"""Constrained answers of a real decoder, several in one batch, and what a failing constraint does to its neighbours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bitnet_onnx.runtime import Device, PackageInfo, SamplingParameters
from bitnet_onnx.runtime.engine import constraints
from bitnet_onnx.runtime.engine.constraints import ConstraintError, ConstraintFactory, GrammarConstraint
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.request import EngineRequest, TokenEvent
from bitnet_onnx.runtime.engine.structured_output import plan_output
from bitnet_onnx.runtime.engine.tool_calls import ToolCallDelta
from bitnet_onnx.runtime.tokenizer import TextTokenizer

TIMEOUT = 60
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
PROMPT = (3, 5, 7, 11)


@pytest.fixture(scope="module")
def factory(package: PackageInfo) -> ConstraintFactory:
    return ConstraintFactory(TextTokenizer(package), package.architecture.vocab_size, package.eos_token_ids)


@pytest.fixture(scope="module")
def engine(package_dir: Path) -> Iterator[Engine]:
    with Engine.open(package_dir, EngineSettings(max_batch=8), threads=1, device=Device()) as engine:
        yield engine


@pytest.fixture(autouse=True)
def _little_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """The context of this model is short, and its answers are drawn at random."""
    monkeypatch.setattr(constraints, "_WHITE_SPACE", {"whitespace_pattern": r"\x20"})


def drawn(seed: int, most: int = 88) -> SamplingParameters:
    return SamplingParameters(max_new_tokens=most, temperature=1.5, seed=seed)


def test_answers_of_a_batch_each_follow_their_own_constraint(engine: Engine, factory: ConstraintFactory) -> None:
    streams = [
        engine.submit(EngineRequest(PROMPT, drawn(seed), constraint=constraint))
        for seed in range(4)
        for constraint in (factory.choice(["yes", "no, \u00e9"]), factory.json_schema(SCHEMA), None)
    ]
    for index, stream in enumerate(streams):
        text, ids, finished = stream.result(TIMEOUT)
        assert finished.error is None
        assert finished.completion_tokens == len(ids)
        if index % 3 == 0:
            assert text in ("yes", "no, \u00e9")
            assert finished.reason == "stop"
        elif index % 3 == 1:
            jsonschema.validate(json.loads(text), SCHEMA)
            assert finished.reason == "stop"


def test_a_constraint_that_fails_ends_its_own_answer_only(
    engine: Engine, factory: ConstraintFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = factory.choice(["abcdef", "ab"]), factory.choice(["no", "yes"])
    accept = GrammarConstraint.accept

    def fail(constraint: GrammarConstraint, token: int) -> None:
        if constraint is broken:
            raise ConstraintError("the grammar is too complex")
        accept(constraint, token)

    monkeypatch.setattr(GrammarConstraint, "accept", fail)
    streams = [engine.submit(EngineRequest(PROMPT, drawn(2), constraint=each)) for each in (broken, sound)]
    finished = streams[0].result(TIMEOUT)[2]
    assert finished.reason == "error"
    assert isinstance(finished.error, ConstraintError)
    assert streams[1].result(TIMEOUT)[0] in ("no", "yes")
    assert engine.healthy


def test_a_forced_call_comes_out_of_the_stream(engine: Engine, factory: ConstraintFactory) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    plan = plan_output(
        factory, "{{ tools }}<tool_call>", tools=tools, tool_choice="required", parallel_tool_calls=False
    )
    constraint = plan.constraint()
    parser = plan.parser()
    assert parser is not None
    deltas = []
    for event in engine.submit(EngineRequest(PROMPT, drawn(3), constraint=constraint)).events(TIMEOUT):
        if isinstance(event, TokenEvent):
            deltas += parser.push(event.text, event.id)
    (call,) = deltas + parser.finish()
    assert isinstance(call, ToolCallDelta)
    assert (call.name, call.arguments) == ("f", "{}")
