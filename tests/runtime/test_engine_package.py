"""The engine over a real decoder: the ids of every request alone, bit for bit, with the operator library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_onnx.converters import convert
from bitnet_onnx.errors import BitnetOnnxError, PackageError
from bitnet_onnx.runtime import Device, Model, PackageInfo, SamplingParameters
from bitnet_onnx.runtime.engine import _kv_slots
from bitnet_onnx.runtime.engine.constraints import ConstraintFactory
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.engine.request import EngineBusyError, EngineRequest, Finished
from bitnet_onnx.runtime.kv_calibration import write_kv_scales
from bitnet_onnx.runtime.kv_scales import KV_TYPES, KvType
from bitnet_onnx.runtime.memory import HybridMemoryPool

TIMEOUT = 60
GREEDY = SamplingParameters(max_new_tokens=24)
DRAWN = SamplingParameters(max_new_tokens=24, temperature=1.2, top_p=0.9, repetition_penalty=1.1, seed=0)


class Alone:
    """A package, and the answer of each request by itself."""

    def __init__(self, path: Path, library: Path, kv: KvType) -> None:
        self.path = path
        self.kv = kv
        self.device = Device(operator_library=library)
        self.model = Model(PackageInfo.open(path), self.device, threads=1, kv=kv)
        float_bytes = self.model.package.architecture.cache_bytes_per_token
        self.token_bytes = float_bytes if kv == "float32" else float_bytes // 4
        self._known: dict[EngineRequest, tuple[int, ...]] = {}

    def ids(self, request: EngineRequest) -> tuple[int, ...]:
        if request not in self._known:
            self._known[request] = self.model.generate(request.prompt, request.parameters).ids
        return self._known[request]

    def engine(self, budget: int, **chosen: int) -> Engine:
        return Engine.open(
            self.path,
            EngineSettings(**chosen, kv=self.kv),
            memory=HybridMemoryPool(budget),
            threads=1,
            device=self.device,
        )


@pytest.fixture(scope="module", params=KV_TYPES)
def alone(
    tiny_checkpoint: Callable[[str], Path],
    operator_library: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Alone:
    path = tmp_path_factory.mktemp("engine") / "package"
    convert(tiny_checkpoint("untied_gqa"), path)
    if request.param == "int8":
        write_kv_scales(path, device=Device(operator_library=operator_library), threads=1)
    return Alone(path, operator_library, request.param)


@pytest.fixture(params=["paged", "plain"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to hold keys and values."""
    if request.param == "plain":
        monkeypatch.setattr(_kv_slots, "_NO_RESERVE", {})
    return str(request.param)


def prompt(start: int, length: int) -> tuple[int, ...]:
    """Two prompts of one `start` begin alike."""
    return tuple((start * 31 + index * 7) % 97 + 3 for index in range(length))


REQUESTS = st.builds(
    EngineRequest,
    prompt=st.builds(prompt, st.integers(0, 2), st.integers(1, 40)),
    parameters=st.builds(
        lambda base, most, seed: replace(base, max_new_tokens=most, seed=seed),
        st.sampled_from([GREEDY, DRAWN]),
        st.sampled_from([1, 9, 24]),
        st.integers(0, 1),
    ),
    priority=st.integers(0, 1),
    tenant=st.sampled_from(["", "other"]),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schedule=st.lists(
        st.tuples(st.integers(0, 5), REQUESTS, st.one_of(st.none(), st.integers(0, 20))), min_size=1, max_size=8
    ),
    kv_sequences=st.sampled_from([1, 3, 100]),
    cache=st.sampled_from([0, 4 << 10, 1 << 20]),
    block=st.sampled_from([4, 16]),
    chunk=st.sampled_from([3, 16, 64]),
    batch=st.sampled_from([1, 2, 5]),
    speculate=st.sampled_from([0, 2, 8]),
)
def test_any_schedule_gives_the_ids_of_each_request_alone(
    alone: Alone,
    storage: str,
    schedule: list[tuple[int, EngineRequest, int | None]],
    kv_sequences: int,
    cache: int,
    block: int,
    chunk: int,
    batch: int,
    speculate: int,
) -> None:
    sizes: dict[str, int] = {"max_batch": batch, "prefill_chunk": chunk, "speculate": speculate}
    working = alone.engine(1 << 30, **sizes).metrics().memory.by_owner["onnxruntime"]
    # A sequence of these takes at most 64 tokens.
    room = kv_sequences * 2 * 128 * alone.token_bytes
    engine = alone.engine(working + room, prompt_cache_bytes=cache, prompt_cache_block=block, **sizes)
    streams = []
    for delay, request, _ in schedule:
        for _ in range(delay):
            engine.step()
        streams.append(engine.submit(request))
    leaving = sorted((steps, index) for index, (_, _, steps) in enumerate(schedule) if steps is not None)
    count = 0
    while engine.step():
        while leaving and leaving[0][0] <= count:
            streams[leaving.pop(0)[1]].cancel()
        count += 1
        assert count < 10_000
    for (_, request, leaves), stream in zip(schedule, streams, strict=True):
        answer = stream.result(0)
        expected = alone.ids(request)
        if answer.finished.reason == "cancelled":
            assert leaves is not None
            assert answer.ids == expected[: len(answer.ids)]
        else:
            assert answer.finished.error is None
            assert answer.ids == expected
    report = engine.metrics().memory
    assert report.peak <= report.budget
    engine.close()
    assert engine.metrics().memory.by_owner.get("prompt cache", 0) == 0
    assert engine.metrics().memory.by_owner.get("kv", 0) == 0


def test_preempted_answers_go_on_as_if_nothing_had_been(alone: Alone, storage: str) -> None:
    sizes = {"max_batch": 6, "prefill_chunk": 32, "prompt_cache_bytes": 0}
    working = alone.engine(1 << 30, **sizes).metrics().memory.by_owner["onnxruntime"]
    # What three prompts take before they are answered: pages of 64 tokens, or of 256 as int8, or arrays that grow by
    # 128 at first.
    length, tokens = (50, 4 * 128) if storage == "paged" else (120, 500)
    if storage == "paged" and alone.kv == "int8":
        length, tokens = 245, 4 * 512
    engine = alone.engine(working + tokens * alone.token_bytes, **sizes)
    requests = [
        EngineRequest(prompt(n, length), SamplingParameters(max_new_tokens=24, temperature=1.0, seed=n))
        for n in range(6)
    ]
    streams = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    for request, stream in zip(requests, streams, strict=True):
        assert stream.result(0).ids == alone.ids(request)
    assert engine.metrics().memory.peak <= engine.metrics().memory.budget
    assert engine.metrics().preemptions > 0


def test_guessed_tokens_change_no_event(alone: Alone, storage: str) -> None:
    factory = ConstraintFactory(
        alone.model.tokenizer, alone.model.package.architecture.vocab_size, alone.model.stop_ids
    )
    schema = {"type": "array", "items": {"enum": ["ab", "ba"]}, "minItems": 9, "maxItems": 9}
    found = []
    for speculate in (0, 7):
        engine = alone.engine(1 << 30, max_batch=4, speculate=speculate)
        streams = [
            engine.submit(
                EngineRequest(
                    prompt(n, 5) * 4,
                    replace(base, max_new_tokens=60, temperature=temperature, seed=n, logit_bias=bias),
                    top_logprobs=n % 3,
                    constraint=factory.json_schema(schema) if n % 4 == 3 else None,
                )
            )
            for n, (base, temperature, bias) in enumerate(
                [(GREEDY, 0.0, ()), (DRAWN, 0.3, ()), (GREEDY, 0.0, ((7, 100.0), (9, 99.5))), (GREEDY, 0.0, ())] * 2
            )
        ]
        while engine.step():
            pass
        found.append([[event for event in stream if not isinstance(event, Finished)] for stream in streams])
        if speculate:
            assert engine.metrics().accepted_tokens > 20
            assert engine.metrics().drafted_tokens > engine.metrics().accepted_tokens
        engine.close()
        assert engine.metrics().memory.by_owner.get("kv", 0) == 0
    assert found[0] == found[1]


def test_text_and_reasons_are_those_of_the_model(alone: Alone) -> None:
    with alone.engine(1 << 30) as engine:
        text = "The quick brown fox"
        ids = tuple(alone.model.encode(text))
        expected = alone.model.generate(text, GREEDY)
        request = EngineRequest(ids, GREEDY, continues_text=True, top_logprobs=2)
        answer = engine.submit(request).result(TIMEOUT)
        assert (answer.text, answer.ids) == (expected.text, expected.ids)
        assert answer.finished.reason == expected.finish_reason
        assert engine.healthy


def test_a_prompt_that_cannot_fit_is_refused_and_the_engine_goes_on(alone: Alone) -> None:
    sizes = {"max_batch": 2, "prefill_chunk": 16}
    working = alone.engine(1 << 30, **sizes).metrics().memory.by_owner["onnxruntime"]
    engine = alone.engine(working + 64, **sizes)
    stream = engine.submit(EngineRequest(prompt(1, 20)))
    while engine.step():
        pass
    assert isinstance(stream.result(0).finished.error, EngineBusyError)
    assert engine.healthy


def test_a_budget_without_room_for_one_step_is_refused(alone: Alone) -> None:
    with pytest.raises(BitnetOnnxError, match="budget"):
        alone.engine(1000)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError):
        Engine.open(tmp_path / "absent")
