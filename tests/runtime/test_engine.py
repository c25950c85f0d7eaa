"""The batching engine gives every request the answer that it would get alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engines import Clock, finish, make_engine, reference, request
from fake_batch_session import BYTES_PER_TOKEN, GRANULE, STOP_ID, FakeBatchSession, decode_text
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime import SamplingParameters
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.request import EngineBusyError, EngineRequest, TokenEvent
from bitnet_onnx.runtime.engine.stream import AnswerStream
from bitnet_onnx.runtime.memory import HybridMemoryPool

GREEDY = SamplingParameters(max_new_tokens=12)
DRAWN = SamplingParameters(max_new_tokens=12, temperature=1.5, top_k=9, repetition_penalty=1.3, seed=5)

#: Few tokens and beginnings in common, so that the prompt cache hits.
PROMPTS = st.builds(
    lambda head, tail: (*range(1, 1 + head), *tail),
    st.sampled_from([0, 4, 9, 17]),
    st.lists(st.integers(1, 3), min_size=1, max_size=9),
)
REQUESTS = st.builds(
    EngineRequest,
    prompt=PROMPTS,
    parameters=st.builds(
        lambda base, most, seed: replace(base, max_new_tokens=most, seed=seed),
        st.sampled_from([GREEDY, DRAWN]),
        st.integers(1, 30),
        st.integers(0, 3),
    ),
    priority=st.integers(0, 2),
    tenant=st.sampled_from(["", "other"]),
)


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[int, EngineRequest, int | None]]:
    """Requests in the order of their arrival, each with the steps before it, and those until it is cancelled."""
    cancel = st.one_of(st.none(), st.none(), st.integers(0, 12))
    return draw(st.lists(st.tuples(st.integers(0, 4), REQUESTS, cancel), min_size=1, max_size=12))


@settings(max_examples=200, deadline=None)
@given(
    schedule=schedules(),
    budget=st.sampled_from([240, 400, 450, 1 << 20]),
    cache=st.sampled_from([0, 120, 1 << 20]),
    block=st.integers(1, 6),
    chunk=st.integers(1, 9),
    batch=st.integers(1, 5),
    speculate=st.sampled_from([0, 1, 5]),
)
def test_any_schedule_gives_the_answers_of_each_request_alone(
    schedule: list[tuple[int, EngineRequest, int | None]],
    budget: int,
    cache: int,
    block: int,
    chunk: int,
    batch: int,
    speculate: int,
) -> None:
    session = FakeBatchSession(
        HybridMemoryPool(budget), context_length=40, max_batch=batch, prefill_chunk=chunk, repeats=speculate > 0
    )
    engine = make_engine(session, prompt_cache_bytes=cache, prompt_cache_block=block, speculate=speculate)
    asked: list[tuple[EngineRequest, AnswerStream]] = []
    to_cancel: list[list[int]] = []
    cancelled: set[int] = set()

    def step() -> None:
        for pair in to_cancel:
            pair[1] -= 1
            if pair[1] < 0:
                asked[pair[0]][1].cancel()
                cancelled.add(pair[0])
        engine.step()

    for delay, wanted, cancel in schedule:
        for _ in range(delay):
            step()
        if cancel is not None:
            to_cancel.append([len(asked), cancel])
        asked.append((wanted, engine.submit(wanted)))
    for _ in range(12):
        step()
    finish(engine)
    for index, (wanted, stream) in enumerate(asked):
        text, ids, finished = stream.result()
        expected = reference(session, wanted)
        tokens = [event for event in stream if isinstance(event, TokenEvent)]
        assert [event.id for event in tokens] == list(ids) == expected[: len(ids)]
        assert "".join(event.text for event in tokens) == text == decode_text(ids)
        assert finished.completion_tokens == len(ids)
        assert finished.cached_tokens < finished.prompt_tokens == len(wanted.prompt)
        if finished.reason == "error":
            # Refused only where it would not have fitted alone.
            assert isinstance(finished.error, EngineBusyError)
            needed = -(-(len(wanted.prompt) + len(ids) + 1) // GRANULE) * GRANULE * BYTES_PER_TOKEN
            assert needed > budget
        elif finished.reason == "cancelled":
            assert index in cancelled
        else:
            assert list(ids) == expected
            whole = len(wanted.prompt) + len(ids)
            assert finished.reason == ("stop" if ids[-1] == STOP_ID else "context" if whole > 40 else "length") or (
                whole > 40 and len(ids) == wanted.parameters.max_new_tokens
            )
    assert session.opened == []
    assert session.pool.report().used == engine.metrics().prompt_cache_bytes <= cache
    assert session.pool.report().peak <= budget
    engine.close()
    assert session.pool.report().used == 0


def test_a_seed_repeats_whatever_else_is_in_the_batch() -> None:
    session = FakeBatchSession(max_batch=8)
    engine = make_engine(session)
    parameters = SamplingParameters(max_new_tokens=20, temperature=1.0, seed=11)
    streams = [engine.submit(request(1, 2, 3, parameters=replace(parameters, seed=seed))) for seed in (11, 4, 11, 8)]
    finish(engine)
    answers = [stream.result().ids for stream in streams]
    assert answers[0] == answers[2]
    assert len(set(answers)) == 3
    lone = FakeBatchSession()
    engine = make_engine(lone)
    stream = engine.submit(request(1, 2, 3, parameters=parameters))
    finish(engine)
    assert stream.result().ids == answers[0]


def test_the_text_ends_before_a_stop_string_across_tokens() -> None:
    session = FakeBatchSession()
    whole = decode_text(session.answer([5], 12))
    stop = whole[3:6]
    engine = make_engine(session)
    stream = engine.submit(request(5, parameters=SamplingParameters(max_new_tokens=12, stop=(stop,))))
    finish(engine)
    answer = stream.result()
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finished.reason == "stop"
    assert len(answer.ids) == whole.index(stop) + 3


def test_what_was_held_back_for_a_stop_string_comes_at_the_end() -> None:
    session = FakeBatchSession()
    whole = decode_text(session.answer([5], 6))
    engine = make_engine(session)
    stream = engine.submit(request(5, parameters=SamplingParameters(max_new_tokens=6, stop=(whole[-1] + "?",))))
    finish(engine)
    assert stream.result().text == whole


@pytest.mark.parametrize("continues", [True, False])
def test_a_continued_text_keeps_the_space_before_its_next_word(continues: bool) -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    engine = Engine(session, lambda ids: " ".join(map(str, ids)), frozenset(), session.pool, engine.settings)
    stream = engine.submit(request(5, 6, most=3, continues_text=continues))
    finish(engine)
    answer = stream.result()
    assert answer.text == " " * continues + " ".join(map(str, answer.ids))


def test_a_context_that_is_full_ends_the_answer() -> None:
    session = FakeBatchSession(context_length=16)
    prompts = [[5], list(range(1, 16)), list(range(1, 17))]
    engine = make_engine(session)
    streams = [engine.submit(request(*prompt, most=100)) for prompt in prompts]
    finish(engine)
    for prompt, stream in zip(prompts, streams, strict=True):
        answer = stream.result()
        assert list(answer.ids) == session.answer(prompt, 100)
        if answer.ids[-1] != STOP_ID:
            assert answer.finished.reason == "context"
            assert len(prompt) + len(answer.ids) == 17
    assert "context" in {stream.result().finished.reason for stream in streams}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": ()}, "0 tokens, expected 1 to 64"),
        ({"prompt": (1,) * 65}, "65 tokens, expected 1 to 64"),
        ({"prompt": (1, 29)}, "token id 29 is outside the model's vocabulary of 29"),
        ({"prompt": (-1,)}, "token id -1"),
        ({"prompt": (1.5,)}, "token id 1.5"),
        ({"prompt": (1,), "top_logprobs": 21}, "top_logprobs is 21"),
        ({"prompt": (1,), "top_logprobs": -1}, "top_logprobs is -1"),
        ({"prompt": (1,), "deadline_s": 0.0}, "deadline_s is 0"),
        ({"prompt": (1,), "deadline_s": float("nan")}, "deadline_s is nan"),
    ],
)
def test_a_request_that_cannot_be_answered_is_not_taken(wrong: dict[str, object], words: str) -> None:
    engine = make_engine(FakeBatchSession())
    with pytest.raises(InputError, match=words):
        engine.submit(EngineRequest(**wrong))
    assert engine.metrics().queue_length == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch": 0},
        {"prefill_chunk": 1 << 20},
        {"max_queue": True},
        {"prompt_cache_bytes": -1},
        {"prompt_cache_block": 0},
        {"idle_trim_s": float("nan")},
        {"speculate": -1},
        {"speculate": 33},
    ],
)
def test_settings_have_ranges(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=name):
        EngineSettings(**wrong)


def test_metrics() -> None:
    clock = Clock()
    session = FakeBatchSession()
    engine = make_engine(session, clock, max_queue=3)
    streams = [engine.submit(request(*range(1, 18), most=5)) for _ in range(3)]
    with pytest.raises(EngineBusyError):
        engine.submit(request(1))
    assert engine.metrics().queue_length == 3
    clock.now += 0.3
    engine.step()
    now = engine.metrics()
    assert (now.healthy, now.queue_length, now.running, now.reading, now.max_batch) == (True, 0, 3, 3, 4)
    assert now.occupancy == 0.75
    finish(engine)
    now = engine.metrics()
    assert (now.submitted, now.refused, now.running) == (3, 1, 0)
    assert now.prefilled_tokens + now.cached_tokens == 51
    assert now.cached_tokens == sum(stream.result().finished.cached_tokens for stream in streams) > 0
    assert now.generated_tokens == sum(len(stream.result().ids) for stream in streams)
    assert sum(now.finished.values()) == 3
    assert now.decode_rows == now.generated_tokens - 3
    assert 1 <= now.decode_rows / now.decode_steps <= 3
    assert now.first_token.count == 3
    assert now.first_token.total == pytest.approx(0.9)
    assert now.first_token.counts[now.first_token.bounds.index(0.35)] == 3
    assert (now.queued.count, now.queued.total) == (3, pytest.approx(0.9))
    assert (now.token_gap.count, now.token_gap.total) == (now.generated_tokens - 3, 0)
    assert now.prompt_tokens == 51
    assert now.memory.used == now.prompt_cache_bytes == session.pool.report().by_owner["prompt cache"]


def test_a_closed_engine_takes_nothing() -> None:
    engine = make_engine(FakeBatchSession())
    engine.close()
    engine.close()
    assert not engine.healthy
    with pytest.raises(BitnetOnnxError, match="closed"):
        engine.submit(request(1))
    with pytest.raises(BitnetOnnxError, match="closed"):
        engine.start()


@pytest.mark.parametrize("drain", [True, False])
def test_closing_ends_every_stream(drain: bool) -> None:
    session = FakeBatchSession(max_batch=2)
    engine: Engine = make_engine(session)
    streams = [engine.submit(request(3, n, most=8)) for n in range(1, 5)]
    engine.step()
    last = engine.submit(request(3, 9, most=8))
    engine.close(drain=drain)
    reasons = {stream.result(timeout=0).finished.reason for stream in [*streams, last]}
    assert reasons <= ({"stop", "length"} if drain else {"cancelled"})
    assert session.pool.report().used == 0
    assert session.trims == 1
