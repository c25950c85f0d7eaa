"""The batching engine, stepped by hand."""

from __future__ import annotations

from fake_batch_session import STOP_ID, FakeBatchSession, decode_text

from bitnet_onnx.runtime import SamplingParameters
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.request import EngineRequest


def make_engine(session: FakeBatchSession, **settings: object) -> Engine:
    settings = {"prompt_cache_block": 4, "max_batch": session.max_batch, **settings}
    return Engine(session, decode_text, frozenset({STOP_ID}), session.pool, EngineSettings(**settings))


def finish(engine: Engine, most: int = 10_000) -> None:
    for _ in range(most):
        if not engine.step():
            return
    raise AssertionError("the engine does not come to an end")


def request(*prompt: int, most: int = 12, **fields: object) -> EngineRequest:
    return EngineRequest(prompt, SamplingParameters(max_new_tokens=most), **fields)


def test_answers_are_those_of_each_prompt_alone() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    prompts = [tuple(range(1, 2 + 3 * n)) for n in range(7)]
    streams = [engine.submit(request(*prompt)) for prompt in prompts]
    finish(engine)
    for prompt, stream in zip(prompts, streams, strict=True):
        text, ids, finished = stream.result()
        assert list(ids) == session.answer(prompt, 12)
        assert text == decode_text(ids)
        assert finished.reason == ("stop" if ids[-1] == STOP_ID else "length")
        assert finished.prompt_tokens == len(prompt)
        assert finished.completion_tokens == len(ids)
    engine.close()
    assert session.pool.used == 0
