"""What a batch session holds, and what it gives back."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_play import SCHEDULES, Model, Play, token
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_package import TinyShape, write_package

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime.engine import _kv_slots
from bitnet_onnx.runtime.engine._kv_slots import PlainSlots
from bitnet_onnx.runtime.engine.batch_session import BatchSession, KvBlock
from bitnet_onnx.runtime.engine.request import EngineBusyError
from bitnet_onnx.runtime.kv_scales import KV_TYPES, KvType
from bitnet_onnx.runtime.memory import HybridMemoryPool

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel which pages are there")


def addresses(session: BatchSession) -> Iterator[tuple[int, int]]:
    for buffer in session._slots.buffers:
        yield buffer.ctypes.data, buffer.nbytes


def resident_bytes(session: BatchSession) -> int:
    """What the kernel has given for the cache."""
    if isinstance(session._slots, PlainSlots):
        return sum(nbytes for _, nbytes in addresses(session))
    total = 0
    for address, nbytes in addresses(session):
        pages = (ctypes.c_ubyte * (nbytes // mmap.PAGESIZE))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), pages) == 0
        total += mmap.PAGESIZE * int((np.frombuffer(pages, np.uint8) & 1).sum())
    return total


@linux
@pytest.mark.parametrize("kv", KV_TYPES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=SCHEDULES, budget=st.integers(1, 40))
def test_the_budget_holds_whatever_happens(
    family: Callable[..., Model], storage: str, kv: KvType, schedule: list[tuple[int, int, int]], budget: int
) -> None:
    model = family("mistral_mha", kv)
    needed = model.open(max_batch=4, prefill_chunk=32)._working.nbytes
    memory = HybridMemoryPool(needed + budget * 32768)
    play = Play(model, model.open(memory, max_batch=4, prefill_chunk=32), limited=True)
    for step in schedule:
        with contextlib.suppress(EngineBusyError):
            play.do(*step)
        assert all(sequence.length == len(text) for sequence, text in play.texts.items())
        report = memory.report()
        assert report.used <= memory.budget
        assert resident_bytes(play.session) <= report.by_owner.get("kv", 0)
    for sequence in list(play.texts):
        play.close(sequence)
    play.session.trim()
    assert resident_bytes(play.session) == 0
    assert memory.report().by_owner == {"onnxruntime": needed}


def test_spent_memory_is_an_answer_and_changes_nothing(package: PackageInfo, storage: str) -> None:
    model = Model(package, Device())
    needed = model.open(max_batch=4)._working.nbytes
    memory = HybridMemoryPool(needed + 3 * 96 * 512)
    session = model.open(memory, max_batch=4)
    first = session.open(90)
    assert first is not None
    ids = [token(position, 1, 259) for position in range(96)]
    session.prefill(first, ids[:90], logits=False)
    others = []
    while (other := session.open(60)) is not None:
        others.append(other)
    assert 0 < len(others) < 3
    assert memory.report().used <= memory.budget
    np.testing.assert_allclose(session.decode([first], ids[90:91])[0], model.logits(ids[:91]), atol=1e-4)
    session.close(first)
    # What a closed sequence had is there for another, in whatever slot.
    again = session.open(60)
    assert again is not None
    assert memory.report().used <= memory.budget


def test_a_sequence_that_cannot_grow_stays_as_it_is(tmp_path: Path, storage: str) -> None:
    model = Model(PackageInfo.open(write_package(tmp_path, TinyShape(context_length=700))), Device())
    needed = model.open(max_batch=2, prefill_chunk=128)._working.nbytes
    memory = HybridMemoryPool(needed + 2 * 200 * 512)
    session = model.open(memory, max_batch=2, prefill_chunk=128)
    first, second = session.open(120), session.open(120)
    assert first is not None
    assert second is not None
    ids = [token(position, 1, 259) for position in range(700)]
    session.prefill(first, ids[:120], logits=False)
    session.prefill(second, ids[:128], logits=False)
    assert session.reserve(second, 129)
    used = memory.report().used
    assert not session.reserve(first, 600)
    block = session.copy_out(second, 0, 128)
    session.truncate(first, 0)
    session.copy_in(first, block)
    while session.reserve(first, first.length + 100):
        session.prefill(first, ids[first.length : first.length + 100], logits=False)
    with pytest.raises(EngineBusyError, match=r"no memory for a sequence of \d+ tokens; close another") as caught:
        session.prefill(first, ids[:100], logits=False)
    assert "\n" not in str(caught.value)
    length = first.length
    with pytest.raises(EngineBusyError):
        session.copy_in(first, KvBlock(length, block.data))
    assert (first.length, second.length) == (length, 128)
    assert used <= memory.report().used <= memory.budget
    session.truncate(first, length - 1)
    np.testing.assert_allclose(
        session.decode([second, first], [ids[128], ids[length - 1]]),
        [model.logits(ids[:129]), model.logits(ids[:length])],
        atol=1e-4,
    )


@linux
def test_a_long_context_starts_small_and_comes_back(tmp_path: Path, storage: str) -> None:
    package = PackageInfo.open(write_package(tmp_path, TinyShape(context_length=131072)))
    memory = HybridMemoryPool(2**26)
    session = Model(package, Device()).open(memory, max_batch=16)
    sequence = session.open(100)
    assert sequence is not None
    session.prefill(sequence, [1] * 100, logits=True)
    session.decode([sequence], [2])
    assert resident_bytes(session) <= memory.report().by_owner["kv"] <= 2**17
    # Far beyond what fits 16 times, for one.
    assert session.reserve(sequence, 60_000)
    assert memory.report().by_owner["kv"] < 2**26
    session.close(sequence)
    session.trim()
    assert memory.report().by_owner.keys() == {"onnxruntime"}
    assert resident_bytes(session) == 0
    sequence = session.open(4)
    assert sequence is not None
    assert session.prefill(sequence, [1], logits=True) is not None


@linux
def test_rows_that_rest_and_sequences_that_move_are_paid_for(family: Callable[[str], Model], storage: str) -> None:
    memory = HybridMemoryPool(2**30)
    play = Play(family("mistral_mha"), family("mistral_mha").open(memory, max_batch=6, prefill_chunk=32))
    for _ in range(6):
        play.open(0)
        play.prefill(list(play.texts)[-1], 5, logits=False)
    for gone in (3, 2):
        play.close(list(play.texts)[gone])
    play.session.trim()
    before = memory.report().by_owner["kv"]
    play.decode(0b1111)  # over two slots that have no memory
    assert resident_bytes(play.session) <= memory.report().by_owner["kv"]
    for _ in range(10):
        play.decode(0b1111)
    assert sorted(sequence._slot for sequence in play.texts) == [0, 1, 2, 3]
    assert resident_bytes(play.session) <= memory.report().by_owner["kv"] <= before


@linux
def test_trim_keeps_what_is_reserved(family: Callable[[str], Model], storage: str) -> None:
    memory = HybridMemoryPool(2**30)
    play = Play(family("gemma3_text"), family("gemma3_text").open(memory, max_batch=4, prefill_chunk=128))
    play.open(0)
    play.prefill(next(iter(play.texts)), 120, logits=False)
    play.close(next(iter(play.texts)))
    for length in (20, 40):
        play.open(0)
        play.prefill(list(play.texts)[-1], length, logits=False)
    before = memory.report().by_owner["kv"]
    play.session.trim()
    after = memory.report().by_owner["kv"]
    assert resident_bytes(play.session) <= after <= before
    assert after < before or storage == "plain"
    play.decode(3)
    play.close(list(play.texts)[1])
    play.session.trim()
    assert memory.report().by_owner["kv"] < after
    play.decode(1)


def test_plain_buffers_grow_only_as_far_as_memory_goes(package: PackageInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kv_slots, "_NO_RESERVE", {})
    monkeypatch.setattr(_kv_slots, "BLOCK", 8)
    memory = HybridMemoryPool(2**30)
    session = Model(package, Device()).open(memory, max_batch=3)
    sequence = session.open(8)
    assert sequence is not None
    session.prefill(sequence, [1] * 8, logits=False)
    zeros, made = np.zeros, []

    def fail_later(*args: Any) -> Any:
        made.append(args)
        if len(made) == 3:
            raise MemoryError
        return zeros(*args)

    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", fail_later)
        made.append(())
        assert session._slots.commit(0, 33)  # what doubling did not get, the second attempt gets
    assert memory.report().by_owner["kv"] == resident_bytes(session)
    assert session.decode([sequence], [1]).shape == (1, 259)


def test_a_budget_below_one_step_is_refused(package: PackageInfo) -> None:
    memory = HybridMemoryPool(2**20)
    with pytest.raises(BitnetOnnxError, match="give more memory or smaller prefill_chunk") as caught:
        Model(package, Device()).open(memory)
    assert "\n" not in str(caught.value)
    assert memory.report().used == 0
