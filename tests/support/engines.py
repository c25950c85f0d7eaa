"""Engines over the fake decoder, stepped by hand, and what their answers must be."""

from __future__ import annotations

from collections.abc import Callable

from fake_batch_session import STOP_ID, FakeBatchSession, decode_text

from bitnet_onnx.runtime import SamplingParameters
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.request import EngineRequest
from bitnet_onnx.runtime.sampling import Sampler


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_engine(session: FakeBatchSession, clock: Callable[[], float] | None = None, **settings: object) -> Engine:
    chosen = EngineSettings(**{"prompt_cache_block": 4, "max_batch": session.max_batch, **settings})
    return Engine(session, decode_text, frozenset({STOP_ID}), session.pool, chosen, clock=clock or Clock())


def request(*prompt: int, most: int = 12, **fields: object) -> EngineRequest:
    parameters = fields.pop("parameters", SamplingParameters(max_new_tokens=most))
    return EngineRequest(prompt, parameters, **fields)


def finish(engine: Engine, most: int = 10_000) -> int:
    """Steps until nothing is left, and tells how many steps that took."""
    for count in range(1, most + 1):
        if not engine.step():
            return count
    raise AssertionError(f"the engine has not come to an end in {most} steps")


def reference(session: FakeBatchSession, asked: EngineRequest) -> list[int]:
    """The ids of the answer to one request alone."""
    sampler = Sampler(asked.parameters)
    sampler.observe(asked.prompt)
    tokens = list(asked.prompt)
    while len(tokens) - len(asked.prompt) < asked.parameters.max_new_tokens and len(tokens) <= session.context_length:
        tokens.append(sampler.sample(session.logits(tokens)))
        sampler.observe(tokens[-1:])
        if tokens[-1] == STOP_ID:
            break
    return tokens[len(asked.prompt) :]
