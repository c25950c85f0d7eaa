"""A batch session played by schedules, beside the texts that its sequences should hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.runtime.engine.batch_session import BatchSession, KvBlock, Sequence
from bitnet_onnx.runtime.kv_scales import KvType, scales_for
from bitnet_onnx.runtime.memory import HybridMemoryPool
from bitnet_onnx.runtime.session import DecoderSession

#: Longer than the first plain buffers.
LONGEST = 150
#: Actions of `Play.do`.
SCHEDULES = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 63), st.integers(0, 60)), min_size=5, max_size=40)


class Model:
    """A package, and what a session of its own answers to any text."""

    def __init__(self, package: PackageInfo, device: Device, kv: KvType = "float32") -> None:
        self.package = package
        self.device = device
        self.scales = scales_for(package, device, kv, threads=1)
        self._session = DecoderSession(package, device, threads=1, kv_scales=self.scales)
        self._known: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}

    def open(self, memory: HybridMemoryPool | None = None, **options: Any) -> BatchSession:
        memory = HybridMemoryPool(2**30) if memory is None else memory
        options.setdefault("draft_tokens", 5)
        return BatchSession(self.package, self.device, memory, threads=1, kv_scales=self.scales, **options)

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

    def verify(self, counts: list[int]) -> None:
        """A token for each sequence and a draft of so many; part of what was read is forgotten again."""
        chosen = [pair for pair in zip(self.texts, counts, strict=False) if pair[0].length < LONGEST]
        if not chosen:
            return
        sequences = [sequence for sequence, _ in chosen]
        drafts = [self.more(sequence, 1 + count) for sequence, count in chosen]
        found = self.session.verify(sequences, [ids[0] for ids in drafts], [ids[1:] for ids in drafts])
        for sequence, ids, logits in zip(sequences, drafts, found, strict=True):
            assert 1 <= len(logits) <= len(ids)
            for new, row in zip(ids, logits, strict=False):
                self.texts[sequence].append(new)
                np.testing.assert_array_equal(row, self.model.logits(self.texts[sequence]))
            assert sequence.length == len(self.texts[sequence])
            self.truncate(sequence, sequence.length - sum(counts) % len(logits))

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
        elif action < 8:
            self.decode(a)
        elif action < 11:
            self.verify([(a + b * index) % (1 + self.session._draft_tokens) for index in range(len(self.texts))])
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
