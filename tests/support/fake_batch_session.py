"""A decoder without a graph for the engine's tests: logits are a function of all tokens read, and of nothing else.

It refuses whatever the real one could not do: more rows than slots, tokens without room, a closed sequence, a block in
the wrong place, two threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitnet_onnx.runtime.memory import HybridMemoryPool, Lease

BYTES_PER_TOKEN = 10
GRANULE = 8
STOP_ID = 0


@dataclass(frozen=True)
class FakeBlock:
    start: int
    tokens: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return len(self.tokens) * BYTES_PER_TOKEN


class FakeSequence:
    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.tokens: list[int] = []
        self.closed = False

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def room(self) -> int:
        return self.lease.nbytes // BYTES_PER_TOKEN


class FakeBatchSession:
    """As `BatchSession`.

    Attributes:
        log: what was called, as tuples that begin with the method's name.
        poison: tokens behind which all logits are NaN.
        repeats: logits are nearly a function of the last token alone, so that answers run in circles.
        before: called with the method's name and the sequences before each call; it may raise.
    """

    def __init__(
        self,
        pool: HybridMemoryPool | None = None,
        *,
        vocab_size: int = 29,
        context_length: int = 64,
        max_batch: int = 4,
        prefill_chunk: int = 8,
        repeats: bool = False,
    ) -> None:
        self.pool = HybridMemoryPool(1 << 30) if pool is None else pool
        self.vocab_size, self.context_length = vocab_size, context_length
        self.max_batch, self.prefill_chunk = max_batch, prefill_chunk
        self.repeats = repeats
        self.exact = True
        self.opened: list[FakeSequence] = []
        self.log: list[tuple[object, ...]] = []
        self.poison: set[int] = set()
        self.before: Callable[[str, Sequence[FakeSequence]], None] = lambda name, sequences: None
        self.trims = 0
        self._thread: int | None = None

    def open(self, length: int) -> FakeSequence | None:
        self._called("open", [])
        assert 1 <= length <= self.context_length
        if len(self.opened) == self.max_batch:
            return None
        lease = self.pool.take("kv", _rounded(length))
        if lease is None:
            return None
        self.opened.append(FakeSequence(lease))
        return self.opened[-1]

    def prefill(self, sequence: FakeSequence, ids: Sequence[int], *, logits: bool) -> npt.NDArray[np.float32] | None:
        self._called("prefill", [sequence])
        assert 1 <= len(ids) <= self.prefill_chunk
        self.log.append(("prefill", tuple(ids)))
        self._append(sequence, ids)
        return self.logits(sequence.tokens) if logits else None

    def decode(self, sequences: Sequence[FakeSequence], ids: Sequence[int]) -> npt.NDArray[np.float32]:
        self._called("decode", sequences)
        assert len({id(sequence) for sequence in sequences}) == len(sequences) == len(ids) > 0
        self.log.append(("decode", len(ids)))
        for sequence, token in zip(sequences, ids, strict=True):
            self._append(sequence, [token])
        return np.stack([self.logits(sequence.tokens) for sequence in sequences])

    def verify(
        self, sequences: Sequence[FakeSequence], ids: Sequence[int], drafts: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.float32]]:
        self._called("verify", sequences)
        assert len({id(sequence) for sequence in sequences}) == len(sequences) == len(ids) == len(drafts)
        assert any(drafts), "a step without drafts"
        self.log.append(("verify", len(ids), tuple(map(len, drafts))))
        found = []
        for sequence, token, draft in zip(sequences, ids, drafts, strict=True):
            assert sequence.length + 1 + len(draft) <= self.context_length
            self._append(sequence, [token])
            rows = [self.logits(sequence.tokens)]
            for guess in draft[: sequence.room - sequence.length]:
                self._append(sequence, [guess])
                rows.append(self.logits(sequence.tokens))
            found.append(np.stack(rows))
        return found

    def truncate(self, sequence: FakeSequence, length: int) -> None:
        self._called("truncate", [sequence])
        assert 0 <= length <= sequence.length
        del sequence.tokens[length:]

    def reserve(self, sequence: FakeSequence, length: int) -> bool:
        self._called("reserve", [sequence])
        assert length <= self.context_length
        return length <= sequence.room or sequence.lease.resize(_rounded(length))

    def close(self, sequence: FakeSequence) -> None:
        self._called("close", [sequence])
        self.opened.remove(sequence)
        sequence.closed = True
        sequence.lease.release()

    def copy_out(self, sequence: FakeSequence, start: int, stop: int) -> FakeBlock:
        self._called("copy_out", [sequence])
        assert 0 <= start < stop <= sequence.length
        return FakeBlock(start, tuple(sequence.tokens[start:stop]))

    def copy_in(self, sequence: FakeSequence, block: FakeBlock) -> None:
        self._called("copy_in", [sequence])
        assert block.start == sequence.length, "a block in the wrong place"
        self._append(sequence, block.tokens)

    def trim(self) -> None:
        self._called("trim", [])
        self.trims += 1

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Of what comes behind `tokens`."""
        if tokens[-1] in self.poison:
            return np.full(self.vocab_size, np.nan, np.float32)
        generator = np.random.default_rng([len(tokens), *tokens])
        scores = generator.standard_normal(self.vocab_size)
        if self.repeats:
            scores = 0.05 * scores + np.random.default_rng([7, tokens[-1]]).standard_normal(self.vocab_size)
        return scores.astype(np.float32)

    def answer(self, prompt: Sequence[int], most: int) -> list[int]:
        """The greedy answer to one prompt alone."""
        tokens = list(prompt)
        while len(tokens) - len(prompt) < most and len(tokens) <= self.context_length:
            tokens.append(int(self.logits(tokens).argmax()))
            if tokens[-1] == STOP_ID:
                break
        return tokens[len(prompt) :]

    def _append(self, sequence: FakeSequence, ids: Sequence[int]) -> None:
        assert sequence.length + len(ids) <= sequence.room, "tokens without room"
        sequence.tokens += ids

    def _called(self, name: str, sequences: Sequence[FakeSequence]) -> None:
        self._thread = threading.get_ident() if self._thread is None else self._thread
        assert self._thread == threading.get_ident(), "two threads use one session"
        assert not any(sequence.closed for sequence in sequences), f"{name} of a closed sequence"
        self.before(name, sequences)


def _rounded(length: int) -> int:
    return -(-length // GRANULE) * GRANULE * BYTES_PER_TOKEN


def decode_text(ids: Sequence[int]) -> str:
    """Every token a letter; the end has none."""
    return "".join(chr(ord("a") + token % 26) for token in ids if token != STOP_ID)
