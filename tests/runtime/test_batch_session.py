from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from family_models import FAMILY_MODELS, shapes_of, write_family_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_package import TinyShape, edit_json, manifest, write_package

from bitnet_onnx.converters import convert
from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime.engine import _kv_slots, batch_session
from bitnet_onnx.runtime.engine._kv_slots import PagedSlots, PlainSlots
from bitnet_onnx.runtime.engine.batch_session import BatchSession, KvBlock, Sequence
from bitnet_onnx.runtime.engine.request import EngineBusyError
from bitnet_onnx.runtime.memory import HybridMemoryPool
from bitnet_onnx.runtime.session import DecoderSession

FAMILIES = ("mistral_window", "mistral_mha", "gpt2", "gemma3_text", "llama_dynamic")
#: Longer than the first plain buffers.
LONGEST = 150
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel which pages are there")


@pytest.fixture(params=["paged", "plain"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to hold the cache, on every system that has both."""
    if request.param == "plain":
        monkeypatch.setattr(_kv_slots, "_NO_RESERVE", {})
    elif sys.platform not in _kv_slots._NO_RESERVE:
        pytest.skip("this system reserves memory before it is written")
    return str(request.param)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, operator_library: Path) -> Callable[[str], Model]:
    models: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in models:
            folder = tmp_path_factory.mktemp(name)
            source = write_family_checkpoint(folder / "source", FAMILY_MODELS[name], shapes_of(name))
            convert(source, folder / "package")
            models[name] = Model(PackageInfo.open(folder / "package"), Device(operator_library=operator_library))
        return models[name]

    return get


class Model:
    """A package, and what a session of its own answers to any text."""

    def __init__(self, package: PackageInfo, device: Device) -> None:
        self.package = package
        self.device = device
        self._session = DecoderSession(package, device, threads=1)
        self._known: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}

    def open(self, memory: HybridMemoryPool | None = None, **options: Any) -> BatchSession:
        memory = HybridMemoryPool(2**30) if memory is None else memory
        return BatchSession(self.package, self.device, memory, threads=1, **options)

    def logits(self, ids: list[int]) -> npt.NDArray[np.float32]:
        key = tuple(ids)
        if key not in self._known:
            self._known[key] = self._session.step(ids, self._session.new_cache())
        return self._known[key]


def token(position: int, text: int, vocab: int) -> int:
    """Texts begin alike in parts, so that keys and values of another text would be noticed."""
    return (position * 7919 + (position % 3) * text * 104729 + 1) % vocab


class Play:
    """A session, the texts that its sequences should hold, and what is done to both."""

    def __init__(self, model: Model, session: BatchSession, *, limited: bool = False) -> None:
        self.model = model
        self.session = session
        self.limited = limited
        self.texts: dict[Sequence, list[int]] = {}
        self.blocks: list[tuple[list[int], KvBlock]] = []
        self.count = 0

    def pick(self, number: int) -> Sequence | None:
        sequences = list(self.texts)
        return sequences[number % len(sequences)] if sequences else None

    def more(self, sequence: Sequence, count: int) -> list[int]:
        text = self.texts[sequence]
        return [token(len(text) + i, self.count, self.session.vocab_size) for i in range(count)]

    def open(self, length: int) -> None:
        self.count += 1
        sequence = self.session.open(length)
        assert sequence is not None or self.limited or len(self.texts) == self.session.max_batch
        if sequence is not None:
            self.texts[sequence] = []

    def prefill(self, sequence: Sequence, count: int, *, logits: bool) -> None:
        count = min(count, self.session.prefill_chunk, LONGEST - sequence.length)
        if count < 1:
            return
        ids = self.more(sequence, count)
        found = self.session.prefill(sequence, ids, logits=logits)
        self.texts[sequence] += ids
        if not logits:
            assert found is None
        else:
            np.testing.assert_array_equal(found, self.model.logits(self.texts[sequence]))

    def decode(self, chosen: int) -> None:
        """The sequences whose bits are set, in an order that depends on the number."""
        sequences = [s for i, s in enumerate(self.texts) if chosen >> i & 1 and s.length < LONGEST]
        if not sequences:
            return
        if chosen % 3 == 0:
            sequences.reverse()
        ids = [self.more(sequence, 1)[0] for sequence in sequences]
        found = self.session.decode(sequences, ids)
        for sequence, new, row in zip(sequences, ids, found, strict=True):
            self.texts[sequence].append(new)
            np.testing.assert_array_equal(row, self.model.logits(self.texts[sequence]))

    def truncate(self, sequence: Sequence, length: int) -> None:
        length %= sequence.length + 1
        self.session.truncate(sequence, length)
        del self.texts[sequence][length:]

    def close(self, sequence: Sequence) -> None:
        self.session.close(sequence)
        del self.texts[sequence]

    def copy_out(self, sequence: Sequence, start: int, stop: int) -> None:
        if sequence.length:
            start %= sequence.length
            stop = start + 1 + stop % (sequence.length - start)
            self.blocks.append((self.texts[sequence][:stop], self.session.copy_out(sequence, start, stop)))

    def copy_in(self, sequence: Sequence, number: int) -> None:
        if self.blocks:
            text, block = self.blocks[number % len(self.blocks)]
            if self.texts[sequence][: block.start] != text[: block.start] or sequence.length < block.start:
                return
            self.truncate(sequence, block.start)
            self.session.copy_in(sequence, block)
            self.texts[sequence] = list(text)

    def do(self, action: int, a: int, b: int) -> None:
        sequence = self.pick(a)
        if action < 2 or sequence is None:
            self.open(b)
        elif action < 5:
            self.prefill(sequence, 1 + b, logits=b % 2 == 0)
        elif action < 11:
            self.decode(a)
        else:
            [
                lambda: self.truncate(sequence, b),
                lambda: self.close(sequence),
                lambda: self.copy_out(sequence, b, a),
                lambda: self.copy_in(sequence, b),
                self.session.trim,
                lambda: self.session.reserve(sequence, b),
            ][action - 11]()
        for held, text in self.texts.items():
            assert held.length == len(text)


SCHEDULES = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 63), st.integers(0, 60)), min_size=5, max_size=40)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=SCHEDULES, batch=st.integers(1, 6), chunk=st.sampled_from([5, 64]))
def test_any_schedule_gives_the_bits_of_a_session_alone(
    family: Callable[[str], Model],
    storage: str,
    name: str,
    schedule: list[tuple[int, int, int]],
    batch: int,
    chunk: int,
) -> None:
    memory = HybridMemoryPool(2**30)
    play = Play(family(name), family(name).open(memory, max_batch=batch, prefill_chunk=chunk))
    assert isinstance(play.session._slots, PagedSlots if storage == "paged" else PlainSlots)
    for step in schedule:
        play.do(*step)
    play.decode(2**batch - 1)
    for sequence in list(play.texts):
        play.close(sequence)
    play.session.trim()
    assert set(memory.report().by_owner) == {"onnxruntime"}
    assert memory.report().fragmentation == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_gaps_half_read_prompts_and_long_texts_side_by_side(
    family: Callable[[str], Model], storage: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Play(family(name), family(name).open(max_batch=10, prefill_chunk=64))
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


def test_nothing_is_read_that_was_not_written(family: Callable[[str], Model], storage: str) -> None:
    session = family("mistral_window").open(max_batch=4, prefill_chunk=32)
    first = [session.open(120) for _ in range(4)]
    assert all(first)
    for buffer in session._slots.buffers:
        buffer.fill(np.nan)
    for sequence in first:
        session.close(sequence)  # type: ignore[arg-type]
    play = Play(family("mistral_window"), session)
    for length in (20, 1, 32):
        play.open(0)
        play.prefill(list(play.texts)[-1], length, logits=True)
    play.close(next(iter(play.texts)))
    for _ in range(6):
        play.decode(0b111)


@pytest.mark.parametrize("engine", [True, False])
def test_packages_without_the_graph_of_the_engine_work(
    family: Callable[[str], Model], tmp_path: Path, engine: bool
) -> None:
    whole = family("gpt2").package
    for path in whole.directory.iterdir():
        if engine or path.name != "engine.onnx":
            (tmp_path / path.name).hardlink_to(path)
    model = Model(PackageInfo.open(tmp_path), family("gpt2").device)
    assert (model.package.engine_path is not None) is engine
    play = Play(model, model.open(max_batch=2))
    play.open(0)
    play.prefill(next(iter(play.texts)), 30, logits=True)
    play.open(0)
    play.prefill(list(play.texts)[1], 3, logits=True)
    play.decode(3)


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
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=SCHEDULES, budget=st.integers(1, 40))
def test_the_budget_holds_whatever_happens(
    family: Callable[[str], Model], storage: str, schedule: list[tuple[int, int, int]], budget: int
) -> None:
    model = family("mistral_mha")
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


def test_a_budget_below_one_step_is_refused(package: PackageInfo) -> None:
    memory = HybridMemoryPool(2**20)
    with pytest.raises(BitnetOnnxError, match="give more memory or smaller prefill_chunk") as caught:
        Model(package, Device()).open(memory)
    assert "\n" not in str(caught.value)
    assert memory.report().used == 0


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
