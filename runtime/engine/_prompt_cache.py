"""Keys and values of prompts read before, by blocks, so that a common beginning is computed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from bitnet_onnx.runtime.engine._interfaces import KvBlockLike
from bitnet_onnx.runtime.memory import HybridMemoryPool, Lease

OWNER = "prompt cache"
_DIGEST_BYTES = 32


class BlockKeys:
    """Names of the blocks of one sequence, each a hash of its tenant and of all tokens up to its end.

    So a block is found only behind the same beginning, and only by the same tenant.
    """

    def __init__(self, tenant: str, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._root = blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
        self._keys: list[bytes] = []

    def of(self, tokens: Sequence[int], count: int) -> list[bytes]:
        """The first `count` names; `tokens` may only grow from call to call."""
        while len(self._keys) < count:
            start = len(self._keys) * self._block_tokens
            block = np.asarray(tokens[start : start + self._block_tokens], "<i8").tobytes()
            parent = self._keys[-1] if self._keys else self._root
            self._keys.append(blake2b(parent + block, digest_size=_DIGEST_BYTES).digest())
        return self._keys[:count]


@dataclass(frozen=True, slots=True)
class _Entry:
    block: KvBlockLike
    lease: Lease


class PromptCache:
    """Blocks of `block_tokens` tokens, least recently used first out; all bytes come from the pool.

    Args:
        memory: the pool.
        limit_bytes: most bytes held; 0 turns the cache off.
        block_tokens: tokens of a block.
    """

    def __init__(self, memory: HybridMemoryPool, limit_bytes: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._memory = memory
        self._limit = limit_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0
        # Known from the first block on, since all are of one size.
        self._block_bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._bytes

    @property
    def blocks(self) -> int:
        """Blocks held."""
        return len(self._entries)

    def find(self, keys: Sequence[bytes], first: int) -> list[KvBlockLike]:
        """The blocks from number `first` on, as far as they are held without a gap."""
        found: list[KvBlockLike] = []
        for key in keys[first:]:
            entry = self._entries.get(key)
            if entry is None:
                break
            found.append(entry.block)
        self._touch(keys[: first + len(found)])
        return found

    def store(self, keys: Sequence[bytes], copy: Callable[[], KvBlockLike]) -> None:
        """Keeps the block of the last of `keys`, if its beginning is held and there is room or something older."""
        key, parents = keys[-1], keys[:-1]
        self._touch(parents)
        if self._limit == 0 or key in self._entries or (parents and parents[-1] not in self._entries):
            return
        # Before it is copied, what is copied must have its place.
        lease = self._take(self._block_bytes, parents) if self._block_bytes else None
        if self._block_bytes and lease is None:
            return
        try:
            block = copy()
        except BaseException as error:
            if lease is not None:
                lease.release()
            if isinstance(error, MemoryError):
                return
            raise
        if lease is None:
            self._block_bytes = block.nbytes
            lease = self._take(block.nbytes, parents)
            if lease is None:
                return
        self._entries[key] = _Entry(block, lease)
        self._bytes += self._block_bytes
        self._touch(keys)

    def evict(self) -> bool:
        """Drops the block that was not used for the longest time; False when there is none."""
        if not self._entries:
            return False
        _, entry = self._entries.popitem(last=False)
        self._bytes -= self._block_bytes
        entry.lease.release()
        return True

    def clear(self) -> None:
        """Drops all."""
        while self.evict():
            pass

    def _take(self, nbytes: int, parents: Sequence[bytes]) -> Lease | None:
        while True:
            if self._bytes + nbytes <= self._limit and (lease := self._memory.take(OWNER, nbytes)) is not None:
                return lease
            # The parents were touched last and the deepest first: when that one is the oldest, the cache holds this
            # prompt alone, and without its beginning no block is of use.
            if not self._entries or (parents and next(iter(self._entries)) == parents[-1]):
                return None
            self.evict()

    def _touch(self, keys: Sequence[bytes]) -> None:
        """A block outlives those behind it, which cannot be found without it."""
        for key in reversed(keys):
            if key in self._entries:
                self._entries.move_to_end(key)
