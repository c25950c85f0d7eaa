from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from batch_play import SCHEDULES, Model, Play, token
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_package import TinyShape, edit_json, manifest, write_package

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime.engine import batch_session
from bitnet_onnx.runtime.engine._kv_slots import PagedSlots, PlainSlots
from bitnet_onnx.runtime.engine.batch_session import KvBlock
from bitnet_onnx.runtime.kv_scales import KV_TYPES, KvType
from bitnet_onnx.runtime.memory import HybridMemoryPool

FAMILIES = ("mistral_window", "mistral_mha", "gpt2", "gemma3_text", "llama_dynamic")
FORMS = [
    *((name, "float32") for name in FAMILIES),
    ("mistral_window", "int8"),
    ("gpt2", "int8"),
    ("gemma3_text", "int8"),
]


@pytest.mark.parametrize(("name", "kv"), FORMS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=SCHEDULES, batch=st.integers(1, 6), chunk=st.sampled_from([5, 64]))
def test_any_schedule_gives_the_bits_of_a_session_alone(
    family: Callable[..., Model],
    storage: str,
    name: str,
    kv: KvType,
    schedule: list[tuple[int, int, int]],
    batch: int,
    chunk: int,
) -> None:
    memory = HybridMemoryPool(2**30)
    model = family(name, kv)
    play = Play(model, model.open(memory, max_batch=batch, prefill_chunk=chunk))
    assert isinstance(play.session._slots, PagedSlots if storage == "paged" else PlainSlots)
    for step in schedule:
        play.do(*step)
    play.decode(2**batch - 1)
    for sequence in list(play.texts):
        play.close(sequence)
    play.session.trim()
    assert set(memory.report().by_owner) == {"onnxruntime"}
    assert memory.report().fragmentation == 0


@pytest.mark.parametrize(("name", "kv"), FORMS)
def test_gaps_half_read_prompts_and_long_texts_side_by_side(
    family: Callable[..., Model], storage: str, name: str, kv: KvType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family(name, kv)
    play = Play(model, model.open(max_batch=10, prefill_chunk=64))
    for length in (1, 30, 90, 5, 64, 17, 3, 2, 1, 8):
        play.open(0)
        play.prefill(play.pick(-1) or pytest.fail("no sequence"), length, logits=True)
    sequences = list(play.texts)
    calls: list[tuple[int, int]] = []
    step = play.session._step
    monkeypatch.setattr(
        play.session, "_step", lambda ids, first, stop: calls.append((first, stop)) or step(ids, first, stop)
    )
    play.decode(0b1111111111)
    play.decode(0b1000100011)  # resting rows between those that decode
    play.decode(0b1000000001)  # too many of them: two calls
    assert calls == [(0, 10), (0, 10), (0, 1), (9, 10)]
    for gone in (2, 4, 5):
        play.close(sequences[gone])
    for _ in range(8):
        play.decode(0b1111111111)
    assert sorted(sequence._slot for sequence in play.texts) == [0, 1, 2, 3, 4, 6, 7]


def test_the_longer_a_sequence_the_later_it_moves(package: PackageInfo, storage: str) -> None:
    session = Model(package, Device()).open(max_batch=2)
    first, second = session.open(1), session.open(96)
    assert first is not None
    assert second is not None
    session.prefill(second, [1] * 80, logits=False)
    session.close(first)
    slots = []
    for _ in range(7):
        session.decode([second], [1])
        slots.append(second._slot)
    assert slots == [1, 1, 1, 1, 0, 0, 0]
    assert session.open(1) is not None
    assert session.open(1) is None


def test_a_full_sequence_rests_apart(package: PackageInfo, storage: str) -> None:
    model = Model(package, Device())
    session = model.open(max_batch=3)
    sequences = [session.open(1) for _ in range(3)]
    assert all(sequences)
    ids = [token(position, 1, 259) for position in range(96)]
    for sequence, length in zip(sequences, (10, 96, 20), strict=True):
        session.prefill(sequence, ids[:length], logits=False)  # type: ignore[arg-type]  # none is None
    found = session.decode([sequences[2], sequences[0]], [ids[20], ids[10]])  # type: ignore[list-item]
    np.testing.assert_allclose(found, [model.logits(ids[:21]), model.logits(ids[:11])], atol=1e-4)
    with pytest.raises(InputError, match="97 tokens do not fit the model's context of 96"):
        session.decode([sequences[1]], [1])  # type: ignore[list-item]
    session.truncate(sequences[1], 95)  # type: ignore[arg-type]
    found = session.decode([sequences[1]], [ids[95]])  # type: ignore[list-item]
    np.testing.assert_allclose(found[0], model.logits(ids), atol=1e-4)


@pytest.mark.parametrize("kv", KV_TYPES)
def test_nothing_is_read_that_was_not_written(family: Callable[..., Model], storage: str, kv: KvType) -> None:
    model = family("mistral_window", kv)
    session = model.open(max_batch=4, prefill_chunk=32)
    first = [session.open(120) for _ in range(4)]
    assert all(first)
    for buffer in session._slots.buffers:
        buffer.fill(np.nan if kv == "float32" else -128)
    for sequence in first:
        session.close(sequence)  # type: ignore[arg-type]
    play = Play(model, session)
    for length in (20, 1, 32):
        play.open(0)
        play.prefill(list(play.texts)[-1], length, logits=True)
    play.close(next(iter(play.texts)))
    for _ in range(6):
        play.decode(0b111)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("engine", [True, False])
def test_packages_without_the_graph_of_the_engine_work(
    family: Callable[..., Model], tmp_path: Path, engine: bool, kv: KvType
) -> None:
    whole = family("gpt2").package
    for path in whole.directory.iterdir():
        if engine or path.name != "engine.onnx":
            (tmp_path / path.name).hardlink_to(path)
    model = Model(PackageInfo.open(tmp_path), family("gpt2").device, kv)
    assert (model.package.engine_path is not None) is engine
    play = Play(model, model.open(max_batch=2))
    play.open(0)
    play.prefill(next(iter(play.texts)), 30, logits=True)
    play.open(0)
    play.prefill(list(play.texts)[1], 3, logits=True)
    play.decode(3)


def test_slots_are_as_many_as_the_batch(package: PackageInfo) -> None:
    session = Model(package, Device()).open(max_batch=2)
    first, second = session.open(5), session.open(5)
    assert first is not None
    assert second is not None
    assert session.open(0) is None
    session.close(first)
    third = session.open(5)
    assert third is not None
    with pytest.raises(InputError, match="the sequence is closed"):
        session.decode([first], [1])


def test_a_failing_run_leaves_every_sequence_alone(tmp_path: Path) -> None:
    # The rotary table is shorter than the context that the manifest promises.
    directory = write_package(tmp_path, TinyShape(context_length=16))
    edit_json(directory / "bitnet_onnx.json", **manifest(TinyShape(context_length=64), 259))
    session = Model(PackageInfo.open(directory), Device()).open(max_batch=2)
    short, long = session.open(60), session.open(60)
    assert short is not None
    assert long is not None
    session.prefill(short, [1] * 4, logits=False)
    session.prefill(long, [1] * 16, logits=False)
    for call in (lambda: session.prefill(long, [1], logits=True), lambda: session.decode([short, long], [1, 1])):
        with pytest.raises(BitnetOnnxError, match="running failed") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert (short.length, long.length) == (4, 16)
    assert np.isfinite(session.decode([short], [1])).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_batch": 1025}, "max_batch is 1025"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
    ],
)
def test_options_out_of_range_are_refused(package: PackageInfo, options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Model(package, Device()).open(**options)


def test_wrong_calls_are_refused(package: PackageInfo) -> None:
    model = Model(package, Device())
    session, other = model.open(max_batch=2, prefill_chunk=8), model.open(max_batch=2)
    sequence, foreign = session.open(4), other.open(4)
    assert sequence is not None
    assert foreign is not None
    session.prefill(sequence, [1, 2, 3], logits=False)
    block = session.copy_out(sequence, 0, 2)
    assert (block.start, block.stop, block.nbytes) == (0, 2, 2 * 512)
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: session.open(97), "97 tokens do not fit"),
        (lambda: session.open(-1), "-1 tokens do not fit"),
        (lambda: session.reserve(sequence, 97), "97 tokens do not fit"),
        (lambda: session.prefill(sequence, [], logits=True), "no token ids"),
        (lambda: session.prefill(sequence, [259], logits=True), "token id 259"),
        (lambda: session.prefill(sequence, [1] * 9, logits=True), "9 tokens in one chunk, at most 8"),
        (lambda: session.prefill(foreign, [1], logits=True), "another session"),
        (lambda: session.decode([], []), "no token ids"),
        (lambda: session.decode([sequence], [1, 2]), "2 tokens for 1 sequences"),
        (lambda: session.decode([sequence, sequence], [1, 2]), "2 tokens for 2 sequences; each once"),
        (lambda: session.truncate(sequence, 4), "cannot truncate a sequence of 3 tokens to 4"),
        (lambda: session.truncate(sequence, -1), "cannot truncate"),
        (lambda: session.copy_out(sequence, 2, 4), "positions 2 to 4 of a sequence of 3"),
        (lambda: session.copy_out(sequence, 2, 2), "positions 2 to 2"),
        (lambda: session.copy_in(sequence, block), "do not continue a sequence of 3"),
        (lambda: session.copy_in(sequence, KvBlock(3, block.data[1:])), "do not continue a sequence of 3"),
        (lambda: session.copy_in(sequence, KvBlock(3, block.data.astype(np.int8))), "do not continue a sequence of 3"),
    ]
    for call, words in wrong:
        with pytest.raises(InputError, match=words):
            call()
        assert (sequence.length, foreign.length) == (3, 0)
    session.close(sequence)
    for call in (lambda: session.close(sequence), lambda: session.prefill(sequence, [1], logits=True)):
        with pytest.raises(InputError, match="the sequence is closed"):
            call()


def test_bindings_are_kept_and_bounded(package: PackageInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_session, "_BINDINGS", 2)
    session = Model(package, Device()).open(max_batch=3)
    assert session._binding(0, 1) is session._binding(0, 1)
    first = session._binding(0, 1)
    session._binding(0, 2)
    session._binding(0, 3)
    assert session._binding(0, 1) is not first
    assert len(session._bindings) == 2
