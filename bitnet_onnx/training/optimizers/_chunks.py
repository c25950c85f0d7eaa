"""Flat arrays in pieces that stay in a core's cache, worked on by a few threads.

Every rule is element by element, and every sum is over blocks of a fixed size: results depend neither on the pieces nor
on the threads.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from bitnet_onnx.quantized import FloatArray

#: Floats of a piece.
CHUNK: Final = 1 << 16
#: Floats that are added up by themselves.
BLOCK: Final = 1 << 16
#: That a thread has.
_ROOMS: Final = 3
#: numpy computes outside of the interpreter's lock; more threads would wait for memory.
_THREADS: Final = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of flat arrays within one section of them."""

    start: int
    stop: int

    @property
    def slice(self) -> slice:
        """To index an array with."""
        return slice(self.start, self.stop)


def pieces(size: int, cuts: Iterable[int] = (), *, chunk: int = CHUNK) -> list[Piece]:
    """All of an array of `size` floats, in pieces of at most `chunk` that none of the cuts divides."""
    edges = sorted({0, size, *cuts})
    return [
        Piece(begin, min(begin + chunk, last))
        for first, last in itertools.pairwise(edges)
        for begin in range(first, last, chunk)
    ]


class Workers:
    """A few threads that share out pieces; each has room of its own for what is computed on the way.

    Args:
        threads: None is a few.
        room: floats of a piece at most.
    """

    def __init__(self, threads: int | None = None, *, room: int = CHUNK) -> None:
        self._threads = threads or _THREADS
        self._room = room
        self._pool = ThreadPoolExecutor(self._threads, "optimizer") if self._threads > 1 else None
        self._local = threading.local()

    def run(self, work: Callable[[Piece], None], on: Sequence[Piece]) -> None:
        """Work on every piece, in any order."""

        def share(index: int) -> None:
            for piece in on[index :: self._threads]:
                work(piece)

        if self._pool is None or len(on) < 2:
            for piece in on:
                work(piece)
        else:
            list(self._pool.map(share, range(self._threads)))

    def scratch(self, index: int, count: int) -> FloatArray:
        """Room for `count` floats, which the same thread gets again for the same index."""
        rooms: list[FloatArray] | None = getattr(self._local, "rooms", None)
        if rooms is None:
            rooms = self._local.rooms = [np.empty(self._room, np.float32) for _ in range(_ROOMS)]
        return rooms[index][:count]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
