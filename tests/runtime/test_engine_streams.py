"""Answers as their consumers see them, with the engine's own thread where it matters."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
from engines import finish, make_engine, request
from fake_batch_session import FakeBatchSession

from bitnet_onnx.runtime import SamplingParameters
from bitnet_onnx.runtime.engine.request import Event, Finished, TokenEvent

TIMEOUT = 20


def test_events_end_with_how_it_ended() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    stream = engine.submit(request(5, most=4))
    finish(engine)
    *tokens, last = list(stream)
    assert all(isinstance(event, TokenEvent) for event in tokens)
    assert isinstance(last, Finished)
    assert last is stream.finished
    assert list(stream) == []
    assert [event.id for event in tokens] == list(stream.result(0).ids)


def test_waiting_has_a_limit_and_may_be_repeated() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    stream = engine.submit(request(5, most=2))
    with pytest.raises(TimeoutError):
        next(stream.events(timeout=0))
    with pytest.raises(TimeoutError):
        stream.result(timeout=0)
    finish(engine)
    assert [type(event) for event in stream.events(timeout=0)][-1] is Finished


def test_a_subscriber_gets_all_events_once_and_in_order() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    stream = engine.submit(request(5, most=6))
    engine.step()
    engine.step()
    events: list[Event] = []
    stream.subscribe(events.append)
    assert 0 < len(events) < 6
    finish(engine)
    assert [event.id for event in events if isinstance(event, TokenEvent)] == list(stream.result(0).ids)
    assert isinstance(events[-1], Finished)
    assert list(stream) == []


def test_a_subscriber_that_fails_loses_its_answer_only() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    tokens = [token for token in range(1, 29) if len(session.answer([token], 12)) == 12]
    stream = engine.submit(request(tokens[0]))
    fine = engine.submit(request(tokens[1]))
    calls: list[Event] = []

    def fails(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("gone")

    stream.subscribe(fails)
    finish(engine)
    assert len(calls) == 1
    assert stream.result(0).finished.reason == "cancelled"
    assert list(fine.result(0).ids) == session.answer([tokens[1]], 12)


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_logprobs_are_of_the_logits_before_everything(top: int) -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    parameters = SamplingParameters(max_new_tokens=6, temperature=2.0, top_k=3, repetition_penalty=1.5, seed=3)
    stream = engine.submit(request(5, parameters=parameters, top_logprobs=top))
    silent = engine.submit(request(5, parameters=parameters))
    finish(engine)
    tokens = [5]
    for event in stream:
        if isinstance(event, Finished):
            break
        logits = session.logits(tokens).astype(float)
        expected = logits - math.log(np.exp(logits).sum())
        assert event.logprobs is not None
        assert event.logprobs.chosen == pytest.approx(expected[event.id])
        order = np.argsort(-expected, kind="stable")[:top]
        assert [id_ for id_, _ in event.logprobs.top] == list(order)
        assert [value for _, value in event.logprobs.top] == pytest.approx(list(expected[order]))
        tokens.append(event.id)
    assert all(event.logprobs is None for event in silent if isinstance(event, TokenEvent))


def test_many_threads_are_answered_by_one() -> None:
    session = FakeBatchSession()
    with make_engine(session, time.monotonic) as engine:
        answers: dict[int, list[int]] = {}

        def ask(token: int) -> None:
            stream = engine.submit(request(token, most=10))
            answers[token] = [event.id for event in stream.events(TIMEOUT) if isinstance(event, TokenEvent)]

        threads = [threading.Thread(target=ask, args=(token,)) for token in range(1, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert answers == {token: session.answer([token], 10) for token in range(1, 20)}
        assert engine.healthy
    assert session.pool.report().used == 0


def test_a_consumer_that_never_reads_holds_nobody_up() -> None:
    session = FakeBatchSession(max_batch=2)
    with make_engine(session, time.monotonic) as engine:
        unread = [engine.submit(request(token, most=30)) for token in range(1, 9)]
        fine = engine.submit(request(9, most=30))
        assert list(fine.result(TIMEOUT).ids) == session.answer([9], 30)
        assert all(stream.result(TIMEOUT).finished.reason in ("stop", "length") for stream in unread)


def test_a_consumer_in_the_way_of_close_gets_the_end() -> None:
    session = FakeBatchSession(context_length=100_000)
    engine = make_engine(session, time.monotonic)
    started = threading.Event()
    session.before = lambda name, sequences: started.set() if name == "decode" else None
    engine.start()
    endings: list[Event] = []
    stream = engine.submit(request(*next([t] for t in range(1, 29) if len(session.answer([t], 12)) == 12), most=12))
    reader = threading.Thread(target=lambda: endings.append(list(stream)[-1]))
    reader.start()
    assert started.wait(TIMEOUT)
    engine.close()
    reader.join(TIMEOUT)
    assert [type(event) for event in endings] == [Finished]


def test_an_idle_engine_gives_memory_back_once() -> None:
    session = FakeBatchSession()
    trimmed = threading.Event()
    session.before = lambda name, sequences: trimmed.set() if name == "trim" else None
    with make_engine(session, time.monotonic, idle_trim_s=0.01) as engine:
        assert trimmed.wait(TIMEOUT)
        assert list(engine.submit(request(5, most=3)).result(TIMEOUT).ids) == session.answer([5], 3)


def test_closing_from_a_subscriber_does_not_wait_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    session = FakeBatchSession()
    engine = make_engine(session, time.monotonic)
    stream = engine.submit(request(5, most=12))
    stream.subscribe(lambda event: engine.close())
    engine.start()
    assert stream.result(TIMEOUT).finished.reason in ("cancelled", "stop")
    engine.close()
    assert caplog.records == []
