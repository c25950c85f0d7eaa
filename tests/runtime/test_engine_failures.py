"""What fails, fails alone; what cannot go on, ends every stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from engines import finish, make_engine, request
from fake_batch_session import STOP_ID, FakeBatchSession, FakeSequence, decode_text

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.runtime.engine.engine import Engine
from bitnet_onnx.runtime.engine.stream import AnswerStream


def failing(name: str, error: Exception, *, at: int = 1):
    """A hook that raises in the `at`-th call of a method."""
    calls = 0

    def before(called: str, sequences: Sequence[FakeSequence]) -> None:
        nonlocal calls
        calls += called == name
        if called == name and calls == at:
            raise error

    return before


def error_of(stream: AnswerStream) -> BitnetOnnxError:
    finished = stream.result(0).finished
    assert finished.reason == "error"
    assert finished.error is not None
    return finished.error


def works(engine: Engine, session: FakeBatchSession) -> bool:
    stream = engine.submit(request(4, most=3))
    finish(engine)
    return engine.healthy and list(stream.result(0).ids) == session.answer([4], 3) and session.opened == []


@pytest.mark.parametrize("when", ["prompt", "answer"])
def test_logits_that_are_not_numbers_fail_their_request_alone(when: str) -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    whole = session.answer([5], 12)
    session.poison = {28 if when == "prompt" else whole[4]}
    good = next([t] for t in range(1, 28) if not session.poison & {t, *session.answer([t], 12)})
    poisoned = engine.submit(request(*((28,) if when == "prompt" else (5,))))
    fine = engine.submit(request(*good))
    finish(engine)
    assert "convert it again" in str(error_of(poisoned))
    assert list(poisoned.result(0).ids) == ([] if when == "prompt" else whole[:5])
    assert list(fine.result(0).ids) == session.answer(good, 12)


def test_a_step_that_fails_fails_the_requests_of_that_step() -> None:
    session = FakeBatchSession(max_batch=2)
    engine = make_engine(session)
    streams = [engine.submit(request(token)) for token in (5, 6, 7)]
    session.before = failing("decode", BitnetOnnxError("the graph failed"), at=3)
    finish(engine)
    assert [stream.result(0).finished.reason for stream in streams].count("error") == 2
    assert str(error_of(streams[0])) == "the graph failed"
    assert list(streams[2].result(0).ids) == session.answer([7], 12)
    assert works(engine, session)


@pytest.mark.parametrize("method", ["open", "prefill", "reserve", "copy_in", "copy_out"])
def test_what_one_request_needs_fails_it_alone(method: str) -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    before = engine.submit(request(*range(1, 10), most=1))
    finish(engine)
    assert before.finished is not None
    session.before = failing(method, ValueError("two\nlines"))
    streams = [engine.submit(request(*range(1, 6), n, 7, 8, 9)) for n in (1, 2)]
    finish(engine)
    errors = [stream.result(0).finished.error for stream in streams]
    (message,) = [str(error) for error in errors if error is not None]
    assert message == "the request failed: ValueError: two lines"
    assert works(engine, session)


def test_a_block_that_cannot_be_copied_from_an_answer_fails_it_alone() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    tokens = [token for token in range(1, 29) if len(session.answer([token], 12)) == 12]
    streams = [engine.submit(request(token)) for token in tokens[:2]]
    session.before = failing("copy_out", ValueError("no"))
    finish(engine)
    # A block is four tokens, here the prompt and three of the answer: it fails before the next is chosen.
    assert str(error_of(streams[0])) == "the request failed: ValueError: no"
    assert list(streams[0].result(0).ids) == session.answer([tokens[0]], 3)
    assert list(streams[1].result(0).ids) == session.answer([tokens[1]], 12)
    assert works(engine, session)


@pytest.mark.parametrize("method", ["trim", "close"])
def test_closing_ends_streams_whatever_fails(method: str) -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    stream = engine.submit(request(5))
    engine.step()
    session.before = failing(method, ValueError("stuck"))
    engine.close()
    assert stream.result(0).finished.reason == "cancelled"


def test_a_constraint_hides_no_poison() -> None:
    session = FakeBatchSession()
    logits = session.logits
    session.logits = lambda tokens: np.where(np.arange(29) == 3, np.float32("nan"), logits(tokens))
    engine = make_engine(session)
    stream = engine.submit(request(5, constraint=Only(7, 8), top_logprobs=2))
    finish(engine)
    assert "convert it again" in str(error_of(stream))


def test_a_sequence_that_cannot_be_closed_stops_nobody() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    session.before = failing("close", ValueError("stuck"))
    stream = engine.submit(request(5, most=2))
    finish(engine)
    assert stream.result(0).finished.error is None
    session.opened.clear()
    assert works(engine, session)


def test_text_that_cannot_be_decoded_fails_its_request_alone() -> None:
    session = FakeBatchSession()
    bad = session.answer([5], 12)[2]

    def decode(ids: Sequence[int]) -> str:
        if bad in ids:
            raise KeyError(bad)
        return decode_text(ids)

    engine = make_engine(session)
    engine = Engine(session, decode, frozenset({STOP_ID}), session.pool, engine.settings)
    stream = engine.submit(request(5))
    good = next([t] for t in range(1, 28) if bad not in [t, *session.answer([t], 12)])
    fine = engine.submit(request(*good))
    finish(engine)
    assert "KeyError" in str(error_of(stream))
    assert list(fine.result(0).ids) == session.answer(good, 12)


class Only:
    """Allows some tokens; complete after `most`."""

    def __init__(self, *tokens: int, most: int = 100, size: int = 29) -> None:
        self.tokens, self.most, self.size = tokens, most, size
        self.accepted: list[int] = []

    def allowed(self) -> npt.NDArray[np.bool_]:
        mask = np.zeros(self.size, np.bool_)
        mask[list(self.tokens)] = True
        return mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)
        if token == 13:
            raise BitnetOnnxError("the grammar ran out of memory")

    @property
    def complete(self) -> bool:
        return len(self.accepted) >= self.most


def test_a_constraint_chooses_what_may_come() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    constraint = Only(7, 8)
    stream = engine.submit(request(5, most=9, constraint=constraint))
    ends = engine.submit(request(5, most=9, constraint=Only(7, 8, most=4)))
    finish(engine)
    ids = stream.result(0).ids
    assert set(ids) <= {7, 8}
    assert list(ids) == constraint.accepted
    assert stream.result(0).finished.reason == "length"
    tokens = [5]
    for chosen in ids:
        assert session.logits(tokens)[chosen] == session.logits(tokens)[[7, 8]].max()
        tokens.append(chosen)
    assert ends.result(0).finished.reason == "stop"
    assert ends.result(0).ids == ids[:4]


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Only(), "allows no token"),
        (Only(1, size=28), "vocabulary has 29 tokens"),
        (Only(13), "the grammar ran out of memory"),
        (object(), "AttributeError"),
    ],
)
def test_a_constraint_that_fails_fails_its_request_alone(constraint: object, words: str) -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    stream = engine.submit(request(5, constraint=constraint))
    fine = engine.submit(request(6))
    finish(engine)
    assert words in str(error_of(stream))
    assert stream.result(0).ids == ()
    assert list(fine.result(0).ids) == session.answer([6], 12)


def test_when_the_thread_dies_every_stream_ends_with_an_error() -> None:
    session = FakeBatchSession(max_batch=1)
    times = iter([0.0, 0.0, 0.0])
    engine = make_engine(session, times.__next__)
    streams = [engine.submit(request(token, most=3)) for token in (5, 6)]
    engine.start()
    for stream in streams:
        finished = stream.result(10).finished
        assert finished.reason == "error"
        assert "thread died: StopIteration" in str(finished.error)
    assert not engine.healthy
    assert not engine.metrics().healthy
    with pytest.raises((BitnetOnnxError, StopIteration)):
        engine.submit(request(1))
    engine.close()
