"""Common beginnings of prompts are computed once, within a limit, and by tenant."""

from __future__ import annotations

import pytest
from engines import finish, make_engine, request
from fake_batch_session import BYTES_PER_TOKEN, FakeBatchSession, FakeBlock

from bitnet_onnx.runtime.engine._prompt_cache import BlockKeys, PromptCache
from bitnet_onnx.runtime.engine.engine import Engine
from bitnet_onnx.runtime.engine.request import Finished
from bitnet_onnx.runtime.memory import HybridMemoryPool

SYSTEM = tuple(range(1, 21))


def computed(session: FakeBatchSession) -> int:
    return sum(len(entry[1]) for entry in session.log if entry[0] == "prefill")


def answered(engine: Engine, *prompt: int, tenant: str = "") -> Finished:
    stream = engine.submit(request(*prompt, most=1, tenant=tenant))
    finish(engine)
    return stream.result(0).finished


def test_a_beginning_is_computed_once() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    assert answered(engine, *SYSTEM, 3).cached_tokens == 0
    assert answered(engine, *SYSTEM, 4).cached_tokens == 20
    assert computed(session) == 22
    # The last token is always computed, so its block cannot help.
    assert answered(engine, *SYSTEM).cached_tokens == 16
    assert answered(engine, *SYSTEM[:10]).cached_tokens == 8
    assert answered(engine, 9, *SYSTEM[1:]).cached_tokens == 0


@pytest.mark.parametrize("chunk", [4, 6, 8, 64])
def test_prompts_that_are_read_at_the_same_time_share_their_beginning(chunk: int) -> None:
    session = FakeBatchSession(max_batch=4, prefill_chunk=chunk)
    engine = make_engine(session)
    streams = [engine.submit(request(*SYSTEM, token, most=2)) for token in (3, 4, 5, 6)]
    finish(engine)
    assert computed(session) == 20 + 4
    for token, stream in zip((3, 4, 5, 6), streams, strict=True):
        assert list(stream.result(0).ids) == session.answer([*SYSTEM, token], 2)


def test_a_prompt_that_is_read_again_counts_what_was_cached_the_last_time() -> None:
    session = FakeBatchSession(HybridMemoryPool(40 * BYTES_PER_TOKEN), prefill_chunk=1)
    engine = make_engine(session)
    prompt = SYSTEM[:8] + SYSTEM[:12]
    assert answered(engine, *prompt[:9]).cached_tokens == 0
    grows = next(t for t in range(1, 29) if len(session.answer([t], 22)) == 22)
    engine.submit(request(grows, most=22, priority=1))
    for _ in range(6):
        engine.step()
    stream = engine.submit(request(*prompt, most=1))
    for _ in range(11):
        engine.step()
    assert engine.metrics().preemptions == 1
    assert stream.finished is None
    session.log.clear()
    finish(engine)
    assert stream.result(0).finished.cached_tokens + computed(session) == len(prompt)
    assert computed(session) > len(prompt) - 8


def test_an_answer_is_remembered_for_the_next_turn() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    prompt = next((t,) for t in range(1, 29) if len(session.answer([t], 12)) == 12)
    stream = engine.submit(request(*prompt, most=12))
    finish(engine)
    assert answered(engine, *prompt, *stream.result(0).ids, 5).cached_tokens == 12


def test_one_tenant_never_meets_what_another_left() -> None:
    session = FakeBatchSession()
    engine = make_engine(session)
    answered(engine, *SYSTEM, 3, tenant="one")
    before = computed(session)
    assert answered(engine, *SYSTEM, 3, tenant="two").cached_tokens == 0
    assert computed(session) == before + 21
    assert answered(engine, *SYSTEM, 3, tenant="").cached_tokens == 0
    assert answered(engine, *SYSTEM, 3, tenant="two").cached_tokens == 20
    assert answered(engine, *SYSTEM, 3, tenant="\ud800").cached_tokens == 0


def test_it_is_bounded_and_forgets_what_was_not_used_for_longest() -> None:
    session = FakeBatchSession(context_length=128)
    engine = make_engine(session, prompt_cache_bytes=11 * 4 * BYTES_PER_TOKEN)
    others = [(token, *SYSTEM[1:], 3) for token in (21, 22)]
    answered(engine, *SYSTEM, 3)
    answered(engine, *others[0])
    assert answered(engine, *SYSTEM, 4).cached_tokens == 20
    answered(engine, *others[1])
    assert engine.metrics().prompt_cache_bytes <= 11 * 4 * BYTES_PER_TOKEN
    assert answered(engine, *SYSTEM, 5).cached_tokens == 20
    assert answered(engine, *others[0]).cached_tokens < 20


def test_a_prompt_larger_than_the_cache_keeps_its_beginning() -> None:
    session = FakeBatchSession(context_length=128)
    engine = make_engine(session, prompt_cache_bytes=3 * 4 * BYTES_PER_TOKEN)
    assert answered(engine, *SYSTEM, *SYSTEM, 3).cached_tokens == 0
    assert answered(engine, *SYSTEM, *SYSTEM, 3).cached_tokens == 12


def test_without_a_cache_everything_is_computed() -> None:
    session = FakeBatchSession()
    engine = make_engine(session, prompt_cache_bytes=0)
    for _ in range(2):
        assert answered(engine, *SYSTEM, 3).cached_tokens == 0
    assert "prompt cache" not in session.pool.report().by_owner


def test_a_long_cached_prompt_is_copied_in_several_steps() -> None:
    session = FakeBatchSession(context_length=256, prefill_chunk=1)
    engine = make_engine(session, prompt_cache_block=1)
    prompt = [1 + n % 20 for n in range(100)]
    answered(engine, *prompt)
    stream = engine.submit(request(*prompt, most=1))
    lengths = []
    while engine.step():
        lengths += [sequence.length for sequence in session.opened]
    assert lengths[:3] == [16, 32, 48]
    assert stream.result(0).finished.cached_tokens == 99


def test_a_block_is_copied_only_when_it_has_a_place() -> None:
    pool = HybridMemoryPool(100)
    cache = PromptCache(pool, 1 << 20, 4)
    keys = BlockKeys("", 4).of(list(range(40)), 3)
    cache.store(keys[:1], lambda: FakeBlock(0, (0, 1, 2, 3)))
    assert pool.report().used == 40
    taken = pool.take("kv", 60)
    assert taken is not None
    cache.store(keys[:2], lambda: pytest.fail("there is no place"))
    # Nor is what could not be found.
    taken.release()
    cache.store(keys, lambda: pytest.fail("its beginning is not held"))
    assert cache.blocks == 1


@pytest.mark.parametrize("held", [0, 1])
def test_a_copy_that_fails_leaves_nothing_behind(held: int) -> None:
    pool = HybridMemoryPool(100)
    cache = PromptCache(pool, 1 << 20, 4)
    keys = BlockKeys("", 4).of(list(range(8)), 1 + held)
    if held:
        cache.store(keys[:1], lambda: FakeBlock(0, (0, 1, 2, 3)))

    def fails(error: BaseException) -> FakeBlock:
        raise error

    cache.store(keys, lambda: fails(MemoryError()))
    with pytest.raises(OSError):
        cache.store(keys, lambda: fails(OSError()))
    assert cache.blocks == held
    assert pool.report().used == cache.nbytes == 40 * held


def test_names_differ_by_all_that_stands_before() -> None:
    names = [BlockKeys(tenant, 2).of(tokens, 2)[1] for tenant in ("", "a") for tokens in ([1, 2, 3, 4], [1, 3, 3, 4])]
    assert len(set(names)) == 4
