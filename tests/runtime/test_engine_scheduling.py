"""Who is admitted, read, stepped and preempted, and when."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from engines import Clock, finish, make_engine, request
from fake_batch_session import BYTES_PER_TOKEN, FakeBatchSession, FakeSequence

from bitnet_onnx.runtime.engine.request import EngineBusyError
from bitnet_onnx.runtime.memory import HybridMemoryPool


def prefills(session: FakeBatchSession) -> list[tuple[int, ...]]:
    return [entry[1] for entry in session.log if entry[0] == "prefill"]


def endless(session: FakeBatchSession) -> list[int]:
    """First tokens of prompts whose greedy answers have 20 tokens or more."""
    return [token for token in range(1, session.vocab_size) if len(session.answer([token], 20)) == 20]


def test_running_answers_go_on_while_a_long_prompt_is_read() -> None:
    session = FakeBatchSession(context_length=256, prefill_chunk=8)
    engine = make_engine(session, prompt_cache_bytes=0)
    first, second, *_ = endless(session)
    streams = [engine.submit(request(token, most=20)) for token in (first, second)]
    for _ in range(2):
        engine.step()
    engine.submit(request(*[3] * 80, most=1))
    for _ in range(10):
        before = len(session.log)
        engine.step()
        # One chunk and one step of all that run, and nothing else.
        assert [entry[0] for entry in session.log[before:]] == ["prefill", "decode"]
        assert session.log[-1] == ("decode", 2)
    finish(engine)
    assert [len(stream.result().ids) for stream in streams] == [20, 20]


def test_prompts_are_read_in_turn() -> None:
    session = FakeBatchSession(context_length=256, prefill_chunk=4, max_batch=3)
    engine = make_engine(session, prompt_cache_bytes=0)
    for token in (1, 2, 3):
        engine.submit(request(*[token] * 12, most=1))
    finish(engine)
    assert [ids[0] for ids in prefills(session)] == [1, 2, 3] * 3


def test_short_requests_do_not_starve_a_long_prompt() -> None:
    session = FakeBatchSession(context_length=256, prefill_chunk=4, max_batch=2)
    engine = make_engine(session, prompt_cache_bytes=0)
    long = engine.submit(request(*[1] * 100, most=1))
    for _ in range(60):
        engine.submit(request(2, most=1))
        engine.step()
    assert long.finished is not None


def test_equals_are_admitted_as_they_came_and_larger_priorities_first() -> None:
    session = FakeBatchSession(max_batch=1)
    engine = make_engine(session)
    ended: list[str] = []
    for name, priority in (("a", 0), ("b", 1), ("c", 0), ("d", 5), ("e", 1)):
        stream = engine.submit(request(7, most=3, priority=priority))
        stream.subscribe(lambda event, name=name: ended.append(name) if hasattr(event, "reason") else None)
    finish(engine)
    assert ended == ["d", "b", "e", "a", "c"]


def test_deadlines_end_what_waits_and_what_runs() -> None:
    clock = Clock()
    session = FakeBatchSession(max_batch=1)
    token = endless(session)[0]
    engine = make_engine(session, clock)
    runs = engine.submit(request(token, most=20, deadline_s=5.0))
    waits = engine.submit(request(token, most=20, deadline_s=2.0))
    patient = engine.submit(request(token, most=20))
    engine.step()
    clock.now += 2.0
    engine.step()
    assert runs.finished is None
    assert waits.finished is not None
    assert (waits.finished.reason, waits.finished.completion_tokens) == ("deadline", 0)
    clock.now += 3.0
    engine.step()
    assert runs.result(0).finished.reason == "deadline"
    assert runs.result(0).finished.completion_tokens == len(runs.result(0).ids) > 0
    finish(engine)
    assert patient.result(0).finished.reason == "length"


def test_a_full_queue_refuses_and_says_for_how_long() -> None:
    clock = Clock()
    session = FakeBatchSession(max_batch=1)
    engine = make_engine(session, clock, max_queue=2)
    for _ in range(2):
        engine.submit(request(1, most=1))
    with pytest.raises(EngineBusyError, match="2 requests wait") as caught:
        engine.submit(request(1))
    assert caught.value.retry_after_s == 1.0
    engine.step()
    engine.submit(request(1, most=1))
    for _ in range(30):
        clock.now += 7.0
        engine.step()
        engine.submit(request(1, most=1))
    with pytest.raises(EngineBusyError) as caught:
        engine.submit(request(1))
    assert caught.value.retry_after_s == pytest.approx(7.0, rel=0.1)


def test_a_cancelled_answer_frees_its_slot_within_one_step() -> None:
    session = FakeBatchSession(max_batch=1)
    token = endless(session)[0]
    engine = make_engine(session)
    leaves = engine.submit(request(token, most=20))
    stays = engine.submit(request(token, most=20))
    gives_up = engine.submit(request(token, most=20))
    engine.step()
    (sequence,) = session.opened
    leaves.cancel()
    gives_up.cancel()
    engine.step()
    assert sequence.closed
    assert len(session.opened) == 1
    assert leaves.result(0).finished.reason == gives_up.result(0).finished.reason == "cancelled"
    finish(engine)
    leaves.cancel()
    assert len(stays.result(0).ids) == 20


def test_a_prompt_that_is_cancelled_while_it_is_read_is_read_no_further() -> None:
    session = FakeBatchSession(prefill_chunk=4)
    engine = make_engine(session)
    stream = engine.submit(request(*[1] * 40))
    engine.step()
    stream.cancel()
    finish(engine)
    assert len(prefills(session)) == 1


def test_memory_that_is_short_takes_the_cache_then_admission_then_the_last_in_order() -> None:
    # The fake gives room by 8 tokens: there are five such pieces.
    session = FakeBatchSession(HybridMemoryPool(40 * BYTES_PER_TOKEN), max_batch=4)
    engine = make_engine(session)
    engine.submit(request(*[1] * 13, most=1))
    finish(engine)
    a, b = endless(session)[:2]
    first = engine.submit(request(a, most=20, priority=1))
    second = engine.submit(request(b, most=20))
    engine.step()
    engine.step()
    before = engine.metrics()
    assert before.prompt_cache_bytes == 12 * BYTES_PER_TOKEN
    late = engine.submit(request(*[2] * 27, most=1))
    tiny = engine.submit(request(2, most=1))
    engine.step()
    pressed = engine.metrics()
    assert (pressed.prompt_cache_bytes, pressed.queue_length, pressed.running, pressed.preemptions) == (0, 2, 2, 0)
    while engine.metrics().preemptions == 0:
        # Nobody is admitted, not even who would fit: that would keep the first in the queue waiting for ever.
        assert (engine.metrics().queue_length, engine.metrics().running) == (2, 2)
        engine.step()
    assert engine.metrics().running == 1
    while first.finished is None:
        assert (engine.metrics().queue_length, engine.metrics().running) == (3, 1)
        engine.step()
    finish(engine)
    for token, stream in ((a, first), (b, second)):
        assert list(stream.result(0).ids) == session.answer([token], 20)
    assert list(late.result(0).ids) == session.answer([2] * 27, 1)
    assert list(tiny.result(0).ids) == session.answer([2], 1)
    assert engine.metrics().preemptions == 1
    assert session.pool.report().peak <= session.pool.budget


def test_who_yields_is_the_last_in_order_and_it_goes_on_where_it_was() -> None:
    session = FakeBatchSession(HybridMemoryPool(48 * BYTES_PER_TOKEN), max_batch=4)
    engine = make_engine(session, prompt_cache_bytes=0)
    tokens = endless(session)[:3]
    closed: list[int] = []

    def watch(name: str, sequences: Sequence[FakeSequence]) -> None:
        if name == "close" and sequences[0].length < 20:
            closed.append(sequences[0].tokens[0])

    session.before = watch
    streams = [engine.submit(request(token, most=20, priority=p)) for token, p in zip(tokens, (0, 3, 0), strict=True)]
    finish(engine)
    assert engine.metrics().preemptions == len(closed) > 0
    assert closed[0] == tokens[2]
    assert tokens[1] not in closed
    for token, stream in zip(tokens, streams, strict=True):
        assert list(stream.result(0).ids) == session.answer([token], 20)


def test_what_does_not_fit_alone_is_refused_and_the_others_are_answered() -> None:
    session = FakeBatchSession(HybridMemoryPool(16 * BYTES_PER_TOKEN))
    engine = make_engine(session)
    token = endless(session)[0]
    large = engine.submit(request(*[1] * 30))
    grows = engine.submit(request(token, most=20))
    small = engine.submit(request(2, most=2))
    finish(engine)
    for stream in (large, grows):
        error = stream.result(0).finished.error
        assert isinstance(error, EngineBusyError)
        assert "no memory" in str(error)
        assert error.retry_after_s > 0
    assert list(grows.result(0).ids) == session.answer([token], 20)[:16]
    assert list(small.result(0).ids) == session.answer([2], 2)


def test_the_batch_follows_the_load() -> None:
    session = FakeBatchSession(max_batch=4)
    engine = make_engine(session, max_batch=3)
    tokens = endless(session)[:4]
    for token in tokens:
        engine.submit(request(token, most=20))
    finish(engine)
    sizes = [entry[1] for entry in session.log if entry[0] == "decode"]
    assert max(sizes) == 3
    assert sizes[0] == sizes[-1] == 1
