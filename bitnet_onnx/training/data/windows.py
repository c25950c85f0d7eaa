"""Windows of the tokens of several files, in a shuffled order that can be taken up again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError
from bitnet_onnx.json_input import shown
from bitnet_onnx.training.data.cache import Counts, TokenFile
from bitnet_onnx.training.settings import IGNORED

#: Tokens that are looked at together when windows are counted.
_BLOCK: Final = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Sequences of one step.

    Attributes:
        input_ids: int64 `[B, T]`.
        labels: int64 `[B, T]`, the token behind each; `IGNORED` where none is learned.
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


class TokenWindows:
    """Windows of `length` tokens over files joined in their order; no two have a label in common.

    With `beginning`, each begins with that token, as texts do at inference, in place of the token before its first
    label. What remains at the end, fewer than `length` tokens, is left out, as is a window without a label.

    Args:
        files: the tokens.
        length: of a window.
        beginning: what each window begins with; None is the token before it.
    """

    def __init__(self, files: Sequence[TokenFile], length: int, beginning: int | None = None) -> None:
        self.files: Final = tuple(files)
        self.length: Final = length
        self.counts: Final = sum((file.counts for file in files), Counts())
        self._beginning = beginning
        self._first = 0 if beginning is not None else 1
        self._ends = np.cumsum([file.counts.tokens for file in files], dtype=np.int64)
        self._kept = self._with_labels()

    def __len__(self) -> int:
        return len(self._kept)

    def batch(self, indices: npt.NDArray[np.int64]) -> TokenBatch:
        """The windows of some indices, each below the number of windows."""
        input_ids = np.empty((len(indices), self.length), np.int64)
        labels = np.empty_like(input_ids)
        for row, window in enumerate(self._kept[indices]):
            start = self._first + int(window) * self.length
            before = max(start - 1, 0)
            ids, learned = self._read(before, start + self.length)
            here = start - before
            labels[row] = np.where(learned[here:], ids[here:], IGNORED)
            input_ids[row, 1:] = ids[here:-1]
            input_ids[row, 0] = ids[0] if self._beginning is None else self._beginning
        return TokenBatch(input_ids, labels)

    def _read(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Tokens and what is learned of them, across the ends of files."""
        ids: list[npt.NDArray[np.int64]] = []
        learned: list[npt.NDArray[np.bool_]] = []
        index = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            file = self.files[index]
            offset = int(self._ends[index]) - file.counts.tokens
            end = min(stop, int(self._ends[index]))
            ids.append(file.ids(start - offset, end - offset))
            learned.append(file.learned(start - offset, end - offset))
            start, index = end, index + 1
        return np.concatenate(ids), np.concatenate(learned)

    def _with_labels(self) -> npt.NDArray[np.int64]:
        """The numbers of the windows that have a label."""
        count = max(0, self.counts.tokens - self._first) // self.length
        if self.counts.learned == self.counts.tokens:
            return np.arange(count)
        kept = [np.empty(0, np.int64)]
        at_once = max(1, _BLOCK // self.length)
        for first in range(0, count, at_once):
            last = min(count, first + at_once)
            learned = self._read(self._first + first * self.length, self._first + last * self.length)[1]
            kept.append(first + np.flatnonzero(learned.reshape(-1, self.length).any(axis=1)))
        return np.concatenate(kept)


class TokenStream:
    """Batches without end: in every epoch each window once, in an order of its own.

    Several workers together get what one would: each call is one step of all, and worker `rank` gets its part.

    Args:
        windows: at least one.
        seed: of the orders.
        rank: of this worker.
        size: how many there are.
    """

    def __init__(self, windows: TokenWindows, *, seed: int, rank: int = 0, size: int = 1) -> None:
        self.windows: Final = windows
        self._seed = seed
        self._rank = rank
        self._size = size
        self._taken = 0
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    @property
    def epoch(self) -> float:
        """Epochs that are done, with the share of the one at work."""
        return self._taken / len(self.windows)

    def next(self, batch: int) -> TokenBatch:
        """This worker's part of the next `batch` windows; they may belong to two epochs.

        Raises:
            InputError: `batch` cannot be divided among the workers.
        """
        if batch < 1 or batch % self._size:
            raise InputError(f"a batch of {batch} windows cannot be divided among {self._size} workers")
        share = batch // self._size
        start = self._taken + self._rank * share
        indices = np.fromiter((self._window(place) for place in range(start, start + share)), np.int64, share)
        self._taken += batch
        return self.windows.batch(indices)

    def state(self) -> dict[str, object]:
        """Where the stream stands, as JSON values: the same for all workers."""
        return {
            "taken": self._taken,
            "seed": self._seed,
            "length": self.windows.length,
            "beginning": self.windows._beginning,
            "files": [[file.source.name, file.key] for file in self.windows.files],
        }

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on where a stream stood.

        Raises:
            InputError: it was a stream of other data, or in another order.
        """
        mine = self.state()
        if set(state) != set(mine):
            raise InputError(f"the saved position of the data has the fields {', '.join(sorted(state))!s:.100}")
        for name in ("seed", "length", "beginning"):
            if state[name] != mine[name]:
                raise InputError(
                    f"the saved position is of data with {name} {state[name]!r:.40}, this run has {mine[name]!r}; "
                    f"go on with the settings of the saved run"
                )
        _check_files(state["files"], self.windows.files)
        taken = state["taken"]
        if not isinstance(taken, int) or isinstance(taken, bool) or not 0 <= taken < 1 << 62:
            raise InputError(f"the saved position of the data is {taken!r:.40}, expected a number of windows")
        self._taken = taken

    def _window(self, place: int) -> int:
        """The window at a place in all epochs."""
        epoch, position = divmod(place, len(self.windows))
        if epoch != self._epoch:
            self._order = _shuffled(len(self.windows), self._seed, epoch)
            self._epoch = epoch
        return int(self._order[position])


class ValidationWindows:
    """Windows to evaluate with: always the same, in the order of the data.

    Args:
        windows: at least one.
        rank: of this worker.
        size: how many share the windows.
    """

    def __init__(self, windows: TokenWindows, *, rank: int = 0, size: int = 1) -> None:
        self.windows: Final = windows
        self._rank = rank
        self._size = size

    def batches(self, batch: int, *, limit: int) -> Iterator[TokenBatch]:
        """This worker's part of at most `limit` windows, one of the middle of each of `limit` equal parts of the data.

        Args:
            batch: windows at once; the last ones may be fewer.
            limit: windows of all workers.
        """
        count = len(self.windows)
        chosen = np.arange(count) if limit >= count else (2 * np.arange(limit) + 1) * count // (2 * limit)
        first, last = (len(chosen) * rank // self._size for rank in (self._rank, self._rank + 1))
        for start in range(first, last, batch):
            yield self.windows.batch(chosen[start : min(start + batch, last)])


def _check_files(saved: object, files: Sequence[TokenFile]) -> None:
    if not isinstance(saved, list) or not all(isinstance(one, list) and len(one) == 2 for one in saved):
        raise InputError("the saved position names no files of data")
    if len(saved) != len(files):
        raise InputError(f"the saved position is of {len(saved)} files of data, this run has {len(files)}")
    for (name, key), file in zip(saved, files, strict=True):
        if key != file.key:
            raise InputError(
                f"{file.source}: not the data of the saved position, which is of {shown(str(name))}: its content, the "
                f"tokenizer, holdout or answers_only changed; put it back, or start a new run"
            )


def _shuffled(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """An order of `count` windows: sorted by splitmix64 of their numbers, so that no library's generator matters."""
    key = int.from_bytes(hashlib.sha256(json.dumps([seed, epoch]).encode()).digest()[:8], "little")
    mixed = np.arange(count, dtype=np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed += np.uint64(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return np.argsort(mixed, kind="stable")
