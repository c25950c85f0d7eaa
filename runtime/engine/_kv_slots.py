"""Where the keys and values of all sequences lie: buffers of one capacity, of which every sequence has a slot.

A step over any of the slots is then one call of the graph. What is paid for is what sequences have room for: where
the system gives memory page by page as it is first written, the buffers span the whole context and `PagedSlots`
counts the pages; elsewhere `PlainSlots` holds buffers as large as they must be, and copies them when they grow.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np

from bitnet_onnx.runtime._decoder_graph import CacheArray, CacheType
from bitnet_onnx.runtime.devices import Device
from bitnet_onnx.runtime.memory import Lease
from bitnet_onnx.runtime.package import Architecture

#: Tokens by which plain buffers grow at the least.
BLOCK: Final = 128
#: Takes no part in the system's count of promised memory: it is our account that says how much is used.
_NO_RESERVE: Final = {"linux": 0x4000, "darwin": 0x40}


class KvSlots(Protocol):
    """Buffers `[slots, kv_heads, capacity, head_dim]`, keys and values of layer 0, of layer 1, ...

    Attributes:
        buffers: the same until slots are committed or trimmed.
    """

    buffers: list[CacheArray]

    def commit(self, slot: int, length: int) -> bool:
        """Makes room for `length` tokens in a slot; False: no memory, and everything is as before."""
        ...

    def release(self, slot: int, length: int) -> None:
        """Gives back what a slot has room for beyond `length` tokens, as far as that is possible at once."""
        ...

    def trim(self, slots: int, length: int) -> None:
        """Keeps the first `slots` slots with room for `length` tokens, as far as what is left can be given back."""
        ...


class PagedSlots:
    """Slots that take memory page by page.

    Args:
        sizes: of the model.
        slots: how many there are.
        lease: what is in use.
        cache_type: of keys and values.

    Raises:
        OSError: the address space is limited, or this system hands out memory otherwise.
    """

    def __init__(self, sizes: Architecture, slots: int, lease: Lease, cache_type: CacheType) -> None:
        if sys.platform not in _NO_RESERVE:
            raise OSError("this system reserves memory before it is written")
        self._lease = lease
        self._page = mmap.PAGESIZE
        self._token_bytes = cache_type.itemsize * sizes.head_dim
        heads = sizes.num_key_value_heads
        # Rows of a head begin at a page, so that giving back the pages of one never touches another.
        self._head_bytes = _round_up(sizes.context_length * self._token_bytes, self._page, self._token_bytes)
        self._slot_bytes = heads * self._head_bytes
        count = 2 * sizes.num_hidden_layers
        self._page_cost = count * heads * self._page
        shape = (slots, heads, self._head_bytes // self._token_bytes, sizes.head_dim)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE[sys.platform]
        self._maps = [mmap.mmap(-1, slots * self._slot_bytes, flags=flags) for _ in range(count)]
        for region in self._maps:
            with contextlib.suppress(OSError, AttributeError):  # a kernel without huge pages, a system without the call
                region.madvise(mmap.MADV_NOHUGEPAGE)
        self.buffers: list[CacheArray] = [np.frombuffer(region, cache_type).reshape(shape) for region in self._maps]
        self._pages = [0] * slots

    def commit(self, slot: int, length: int) -> bool:
        """As in `KvSlots`."""
        more = self._pages_of(length) - self._pages[slot]
        if more > 0:
            if not self._lease.resize(self._lease.nbytes + more * self._page_cost):
                return False
            self._pages[slot] += more
        return True

    def release(self, slot: int, length: int) -> None:
        """As in `KvSlots`."""
        keep = self._pages_of(length)
        fewer = self._pages[slot] - keep
        if fewer <= 0:
            return
        start, heads = slot * self._slot_bytes, self._slot_bytes // self._head_bytes
        for region in self._maps:
            if keep == 0:
                _discard(region, start, self._slot_bytes)
                continue
            for head in range(heads):
                _discard(region, start + head * self._head_bytes + keep * self._page, fewer * self._page)
        self._pages[slot] = keep
        self._lease.resize(self._lease.nbytes - fewer * self._page_cost)

    def trim(self, slots: int, length: int) -> None:
        """Nothing: whatever is to be given back went with `release`."""

    def _pages_of(self, length: int) -> int:
        """Pages that hold `length` tokens of one head of one buffer."""
        return -(-length * self._token_bytes // self._page)


class PlainSlots:
    """Slots in ordinary arrays: as many as are in use, each with room for the longest sequence.

    Args:
        sizes: of the model.
        slots: how many there may be.
        lease: what is in use.
        forget: called before arrays are replaced; nothing may hold them then.
        cache_type: of keys and values.
        device: where the session runs.
    """

    def __init__(
        self,
        sizes: Architecture,
        slots: int,
        lease: Lease,
        forget: Callable[[], None],
        cache_type: CacheType,
        device: Device,
    ) -> None:
        self._sizes = sizes
        self._type = cache_type
        self._device = device
        self._most = slots
        self._lease = lease
        empty = np.empty((0, sizes.num_key_value_heads, 0, sizes.head_dim), cache_type)
        self.buffers: list[CacheArray] = [empty] * (2 * sizes.num_hidden_layers)
        self._forget = forget
        self._slots = 0
        self._capacity = 0

    def commit(self, slot: int, length: int) -> bool:
        """As in `KvSlots`."""
        if slot < self._slots and length <= self._capacity:
            return True
        slots, capacity = max(slot + 1, self._slots), max(length, self._capacity)
        # Doubling makes the copies few; where there is no memory for that, a little more will do.
        generous = _power(slots, self._most, 1), _power(capacity, self._sizes.context_length, BLOCK)
        return self._rebuild(*generous) or self._rebuild(slots, capacity)

    def release(self, slot: int, length: int) -> None:
        """Nothing: a slot is a part of larger arrays, which `trim` makes smaller."""

    def trim(self, slots: int, length: int) -> None:
        """As in `KvSlots`."""
        capacity = _power(length, self._sizes.context_length, BLOCK) if length else 0
        if slots < self._slots or capacity < self._capacity:
            self._rebuild(min(slots, self._slots), min(capacity, self._capacity))

    def _rebuild(self, slots: int, capacity: int) -> bool:
        """Moves everything to arrays of another size, a layer at a time; False: no memory."""
        heads, size = self.buffers[0].shape[1], self.buffers[0].shape[3]
        new_bytes = self._type.itemsize * slots * heads * capacity * size
        largest = max(buffer.nbytes for buffer in self.buffers)
        # A new array stands beside the old one while it is filled.
        if not self._lease.resize(len(self.buffers) * max(new_bytes, largest) + min(new_bytes, largest)):
            return False
        self._forget()
        keep, length = min(slots, self._slots), min(capacity, self._capacity)
        try:
            for index, old in enumerate(self.buffers):
                new = self._device.zeros((slots, heads, capacity, size), self._type)
                new[:keep, :, :length] = old[:keep, :, :length]
                self.buffers[index] = new
        except MemoryError:
            # Some arrays are larger now than they must be, which does no harm.
            return False
        finally:
            self._lease.resize(sum(buffer.nbytes for buffer in self.buffers))
            self._slots = min(buffer.shape[0] for buffer in self.buffers)
            self._capacity = min(buffer.shape[2] for buffer in self.buffers)
        return True


def open_slots(
    sizes: Architecture,
    slots: int,
    lease: Lease,
    forget: Callable[[], None],
    cache_type: CacheType,
    device: Device,
) -> KvSlots:
    """Slots that take memory page by page, or plain ones where the system cannot do that.

    Args:
        sizes: of the model.
        slots: how many sequences there may be.
        lease: what is in use.
        forget: called before buffers are replaced; nothing may hold them then.
        cache_type: of keys and values.
        device: where the session runs; a GPU takes all pages that it is shown.
    """
    if device.kind == "cpu":
        with contextlib.suppress(OSError, OverflowError):
            return PagedSlots(sizes, slots, lease, cache_type)
    return PlainSlots(sizes, slots, lease, forget, cache_type, device)


def _discard(region: mmap.mmap, start: int, length: int) -> None:
    """Gives pages back to the system (macOS takes them when it wants them); what they held is lost."""
    region.madvise(mmap.MADV_DONTNEED if sys.platform == "linux" else mmap.MADV_FREE, start, length)


def _round_up(value: int, *factors: int) -> int:
    """The next multiple of all factors."""
    step = int(np.lcm.reduce(factors))
    return -(-value // step) * step


def _power(value: int, most: int, unit: int) -> int:
    """The next power of two times `unit`, at most `most`."""
    return min(most, unit << max(0, (-(-value // unit) - 1).bit_length()))
