"""Guessed tokens change no answer: not its tokens, text, logarithms, nor how it ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import numpy.typing as npt
import pytest
from engines import finish, make_engine, request
from fake_batch_session import BYTES_PER_TOKEN, STOP_ID, FakeBatchSession, FakeSequence
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.runtime import SamplingParameters
from bitnet_onnx.runtime.engine.engine import Engine
from bitnet_onnx.runtime.engine.request import EngineRequest, TokenEvent
from bitnet_onnx.runtime.memory import HybridMemoryPool

LONG = SamplingParameters(max_new_tokens=40)


class Even:
    """Allows tokens of one remainder after each token, so that what is allowed depends on what was chosen."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.accepted: list[int] = []

    def allowed(self) -> npt.NDArray[np.bool_]:
        last = self.accepted[-1] if self.accepted else 0
        return (np.arange(29) % 3 != last % 3) & (np.arange(29) != STOP_ID)

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    @property
    def complete(self) -> bool:
        return len(self.accepted) >= self.most


PARAMETERS = st.builds(
    SamplingParameters,
    max_new_tokens=st.integers(1, 40),
    temperature=st.sampled_from([0.0, 0.2, 1.0]),
    top_k=st.sampled_from([0, 3]),
    repetition_penalty=st.sampled_from([1.0, 1.05]),
    frequency_penalty=st.sampled_from([0.0, 0.01]),
    logit_bias=st.sampled_from([(), ((STOP_ID, -100.0),)]),
    seed=st.integers(0, 3),
    stop=st.lists(st.text("abcdefgh", min_size=1, max_size=3), max_size=2).map(tuple),
)
CASES = st.tuples(
    st.lists(st.integers(1, 4), min_size=1, max_size=20).map(tuple),
    PARAMETERS,
    st.sampled_from([None, 0, 3]),
    st.one_of(st.none(), st.integers(1, 40)),
)


@settings(max_examples=150, deadline=None)
@given(
    cases=st.lists(CASES, min_size=1, max_size=6),
    batch=st.integers(1, 4),
    most=st.integers(1, 8),
    budget=st.sampled_from([400, 900, 1 << 20]),
)
def test_every_event_is_the_same_as_without(
    cases: list[tuple[tuple[int, ...], SamplingParameters, int | None, int | None]], batch: int, most: int, budget: int
) -> None:
    found = []
    for speculate in (0, most):
        session = FakeBatchSession(HybridMemoryPool(budget), context_length=39, max_batch=batch, repeats=True)
        engine = make_engine(session, speculate=speculate)
        streams = [
            engine.submit(
                EngineRequest(
                    prompt,
                    parameters,
                    top_logprobs=top,
                    constraint=None if complete is None else Even(complete),
                )
            )
            for prompt, parameters, top, complete in cases
        ]
        finish(engine)
        found.append([[outcome(event) for event in stream] for stream in streams])
        assert engine.metrics().accepted_tokens <= engine.metrics().drafted_tokens
        assert session.opened == []
    assert found[0] == found[1]


def outcome(event: object) -> object:
    """What the prompt cache holds depends on who came first, and errors are equal by their words."""
    if isinstance(event, TokenEvent):
        return event
    assert hasattr(event, "reason")
    return (event.reason, event.completion_tokens, str(event.error))


class Reciting(FakeBatchSession):
    """Says a text that is known beforehand, token by token, whatever was said before."""

    def __init__(self, script: Sequence[int], **options: int) -> None:
        super().__init__(context_length=200, **options)
        self.script = script

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        if self.poison & set(tokens[-1:]):
            return np.full(self.vocab_size, np.nan, np.float32)
        row = np.zeros(self.vocab_size, np.float32)
        row[self.script[len(tokens)]] = 1
        return row


CIRCLE = tuple(islice(cycle([5, 6, 7, 8]), 200))


def reciting(script: Sequence[int] = CIRCLE, **options: int) -> tuple[Reciting, Engine]:
    session = Reciting(script, **options)
    return session, make_engine(session, speculate=6)


def test_a_text_that_repeats_takes_few_steps() -> None:
    _, engine = reciting()
    stream = engine.submit(request(*CIRCLE[:8], most=41))
    steps = finish(engine)
    assert stream.result(0).ids == CIRCLE[8:49]
    assert steps <= 10
    metrics = engine.metrics()
    assert (
        metrics.accepted_tokens == metrics.drafted_tokens == metrics.generated_tokens - metrics.decode_steps - 1 >= 30
    )


def test_an_answer_ends_within_a_draft_as_it_ends_without() -> None:
    # The end stands in the prompt too, so that it is guessed.
    script = (5, 6, 7, STOP_ID, 5, 6, 7, STOP_ID, 5, 6)
    session, engine = reciting(script)
    stream = engine.submit(request(*script[:5]))
    finish(engine)
    assert (stream.result(0).ids, stream.result(0).finished.reason) == ((6, 7, STOP_ID), "stop")
    for most in range(9, 25):
        session, engine = reciting()
        stream = engine.submit(request(*CIRCLE[:8], most=most))
        finish(engine)
        assert (stream.result(0).ids, stream.result(0).finished.reason) == (CIRCLE[8 : 8 + most], "length")
        assert all(len(entry[2]) == 1 for entry in session.log if entry[0] == "verify")
        assert engine.metrics().drafted_tokens == engine.metrics().accepted_tokens < most - 1


def test_a_stop_string_within_a_draft_ends_the_answer() -> None:
    _, engine = reciting()
    parameters = SamplingParameters(max_new_tokens=40, stop=("ifghifghi",))
    stream = engine.submit(request(*CIRCLE[:8], parameters=parameters))
    finish(engine)
    assert (stream.result(0).text, stream.result(0).ids) == ("fgh", CIRCLE[8:20])
    assert engine.metrics().accepted_tokens > 0


@pytest.mark.parametrize("length", range(1, 12))
def test_drafts_end_with_the_context(length: int) -> None:
    session, engine = reciting()
    session.context_length = 16 + length
    engine = make_engine(session, speculate=6)
    stream = engine.submit(request(*CIRCLE[:16], parameters=LONG))
    finish(engine)
    assert (stream.result(0).ids, stream.result(0).finished.reason) == (CIRCLE[16 : 17 + length], "context")


def test_who_leaves_within_a_draft_gets_no_more_of_it() -> None:
    session, engine = reciting()
    stream = engine.submit(request(*CIRCLE[:8], parameters=LONG))
    seen: list[object] = []

    def leave(event: object) -> None:
        seen.append(event)
        if len(seen) == 5:
            stream.cancel()

    stream.subscribe(leave)
    finish(engine)
    assert engine.metrics().drafted_tokens > engine.metrics().accepted_tokens
    assert len(seen) == 6
    assert stream.result(0).finished.reason == "cancelled"
    assert session.opened == []


def test_logits_that_are_not_numbers_within_a_draft_fail_their_answer_alone() -> None:
    script = (*CIRCLE[:20], 9, *CIRCLE[:30])
    session, engine = reciting(script, max_batch=2)
    session.poison = {9}
    poisoned = engine.submit(request(*script[:12], parameters=LONG))
    fine = engine.submit(request(5, 6, 7, 8, 5, 6, most=10))
    finish(engine)
    assert poisoned.result(0).ids == script[12:21]
    assert "convert it again" in str(poisoned.result(0).finished.error)
    assert fine.result(0).ids == script[6:16]
    assert engine.metrics().accepted_tokens > 0
    assert engine.healthy


def test_what_was_guessed_wrong_is_not_in_the_prompt_cache() -> None:
    session = FakeBatchSession(context_length=200, repeats=True)
    engine = make_engine(session, speculate=6, prompt_cache_block=1)
    talk = [1, 2, 1, 2]
    for turn in range(8):
        stream = engine.submit(request(*talk, most=12))
        finish(engine)
        answer = list(stream.result(0).ids)
        assert answer == session.answer(talk, 12)
        assert turn == 0 or stream.result(0).finished.cached_tokens >= len(talk) - 4
        talk += [*answer[:-1], 3, turn + 4, 3]
    assert engine.metrics().drafted_tokens > engine.metrics().accepted_tokens > 0


@pytest.mark.parametrize("error", [MemoryError("logits"), BitnetOnnxError("no room")])
def test_drafts_that_cannot_be_read_fail_nobody(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    session, engine = reciting()

    def before(name: str, sequences: Sequence[FakeSequence]) -> None:
        if name == "verify":
            raise error

    session.before = before
    with caplog.at_level(logging.WARNING):
        stream = engine.submit(request(*CIRCLE[:8], parameters=LONG))
        finish(engine)
    assert stream.result(0).ids == CIRCLE[8:48]
    assert caplog.text.count("no more tokens are guessed") == 1
    assert engine.metrics().drafted_tokens == 0


def test_a_sequence_that_cannot_forget_fails_alone() -> None:
    session = FakeBatchSession(repeats=True)
    engine = make_engine(session, speculate=6)

    def before(name: str, sequences: Sequence[FakeSequence]) -> None:
        if name == "truncate":
            raise ValueError("stuck")

    session.before = before
    streams = [engine.submit(request(1, 2, 1, 2, 1, 2, parameters=LONG)), engine.submit(request(9, most=1))]
    finish(engine)
    assert "stuck" in str(streams[0].result(0).finished.error)
    assert streams[1].result(0).finished.error is None


def test_without_the_operator_library_nothing_is_guessed(caplog: pytest.LogCaptureFixture) -> None:
    session = Reciting(CIRCLE)
    session.exact = False
    with caplog.at_level(logging.WARNING):
        engine = make_engine(session, speculate=6)
    assert "speculate is idle" in caplog.text
    stream = engine.submit(request(*CIRCLE[:8], parameters=LONG))
    finish(engine)
    assert stream.result(0).ids == CIRCLE[8:48]
    assert engine.metrics().drafted_tokens == 0


@pytest.mark.parametrize("speculate", [0, 6])
def test_guesses_make_nobody_yield(speculate: int) -> None:
    session = FakeBatchSession(HybridMemoryPool(48 * BYTES_PER_TOKEN), max_batch=2, repeats=True)
    engine = make_engine(session, speculate=speculate, prompt_cache_bytes=0)
    bias = replace(SamplingParameters(max_new_tokens=18), logit_bias=((STOP_ID, -100.0),))
    streams = [engine.submit(request(token, 2, token, 2, parameters=bias)) for token in (3, 4)]
    finish(engine)
    assert engine.metrics().preemptions == 0
    assert [len(stream.result(0).ids) for stream in streams] == [18, 18]
    assert (engine.metrics().drafted_tokens > 0) is (speculate > 0)


def test_steps_of_many_rows_have_no_drafts_until_few_are_left() -> None:
    session, engine = reciting(max_batch=6, prefill_chunk=128)
    streams = [engine.submit(request(*CIRCLE[:8], most=most)) for most in (9, 9, 40, 40, 40, 40)]
    finish(engine)
    assert [len(stream.result(0).ids) for stream in streams] == [9, 9, 40, 40, 40, 40]
    sizes = [entry[:2] for entry in session.log if entry[0] != "prefill"]
    assert sizes.index(("verify", 4)) == 8
    assert {size for name, size in sizes if name == "verify"} <= {1, 2, 3, 4}
