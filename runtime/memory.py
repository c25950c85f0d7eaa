"""One byte budget for what serving allocates: keys and values, the prompt cache, working memory of ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bitnet_onnx.errors import InputError

#: The weights are mapped from their file beside it, and the system wants some too.
_SHARE: Final = 0.5
_UNITS: Final = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_SIZE: Final = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]{0,3})\s*", re.ASCII | re.IGNORECASE)
_MAX_BYTES: Final = 2**62
_CGROUP: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What a pool holds, in bytes.

    Attributes:
        budget: the limit.
        used: reserved by all owners together.
        peak: the most that `used` has been.
        by_owner: reserved by each owner that has anything.
        fragmentation: the part of what is reserved for keys and values (owner `kv`) that holds no token, 0 to 1.
    """

    budget: int
    used: int
    peak: int
    by_owner: Mapping[str, int]
    fragmentation: float


class HybridMemoryPool:
    """The account of one process; it allocates nothing itself. For any number of threads.

    Args:
        budget_bytes: what all leases together may reserve.

    Raises:
        InputError: the budget is not positive.
    """

    def __init__(self, budget_bytes: int) -> None:
        if not 0 < budget_bytes <= _MAX_BYTES:
            raise InputError(f"the memory budget is {budget_bytes} bytes, expected 1 to {_MAX_BYTES}")
        self.budget = budget_bytes
        self._lock = threading.Lock()
        self._used = 0
        self._peak = 0
        self._reserved: dict[str, int] = {}
        self._filled: dict[str, int] = {}

    def take(self, owner: str, nbytes: int) -> Lease | None:
        """Reserves `nbytes` for `owner`, in constant time; None: there is no room."""
        lease = Lease(self, owner)
        return lease if lease.resize(nbytes) else None

    def report(self) -> MemoryReport:
        """What is held now."""
        with self._lock:
            by_owner = {owner: size for owner, size in self._reserved.items() if size}
            kv = by_owner.get("kv", 0)
            empty = 1 - self._filled.get("kv", 0) / kv if kv else 0.0
            return MemoryReport(self.budget, self._used, self._peak, by_owner, empty)

    def _change(self, owner: str, difference: int) -> bool:
        """Adds to what an owner has reserved if the budget allows."""
        with self._lock:
            used = self._used + difference
            if difference > 0 and used > self.budget:
                return False
            self._used = used
            self._peak = max(self._peak, used)
            self._reserved[owner] = self._reserved.get(owner, 0) + difference
            return True

    def _fill(self, owner: str, difference: int) -> None:
        with self._lock:
            self._filled[owner] = self._filled.get(owner, 0) + difference


class Lease:
    """A part of the budget; `HybridMemoryPool.take` gives it. Each lease is for one thread at a time."""

    def __init__(self, pool: HybridMemoryPool, owner: str) -> None:
        self._pool = pool
        self.owner = owner
        self._nbytes = 0
        self._filled = 0
        self._released = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return self._nbytes

    def resize(self, nbytes: int) -> bool:
        """Reserves `nbytes` in all, more or fewer than before; False: no room, and everything is as before.

        Raises:
            InputError: `nbytes` is negative, or the lease has been released.
        """
        if nbytes < 0:
            raise InputError(f"{nbytes} bytes of memory asked for by {self.owner}, expected at least 0")
        if self._released:
            raise InputError(f"memory of {self.owner} was released already; take it anew")
        if not self._pool._change(self.owner, nbytes - self._nbytes):
            return False
        self._nbytes = nbytes
        return True

    def fill(self, nbytes: int) -> None:
        """Tells how many of the bytes hold something, for `MemoryReport.fragmentation`."""
        self._pool._fill(self.owner, nbytes - self._filled)
        self._filled = nbytes

    def release(self) -> None:
        """Gives everything back; more than once does no harm."""
        if not self._released:
            self.fill(0)
            self.resize(0)
            self._released = True


def parse_bytes(text: str) -> int:
    """Bytes of a size as `4GiB`, `4G` (the same), `500MB` (decimal) or `1048576`.

    Raises:
        InputError: it is no such size, or less than one byte.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise InputError(f"memory size {text!r:.40} is not a number with a unit; write for example 4GiB or 500MB")
    size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if not 0 < size <= _MAX_BYTES:
        raise InputError(f"memory size {text!r:.40} is {size} bytes, expected 1 to {_MAX_BYTES}")
    return size


def default_budget() -> int:
    """Half of the memory that this process may use."""
    return max(int(usable_bytes() * _SHARE), 1)


def usable_bytes() -> int:
    """The memory that this process may use: the machine's, or its control group's where that is less."""
    return min(_machine_bytes(), *_cgroup_limits())


def _machine_bytes() -> int:
    if sys.platform == "win32":
        status = (ctypes.c_uint64 * 8)()  # MEMORYSTATUSEX: its length and the load as two halves, then the total
        ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_limits() -> list[int]:
    """Limits of the control groups that hold this process; a value that says "none" is as large as it gets."""
    limits = [_MAX_BYTES]
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return limits
    for line in lines:
        # Each line: number:controllers:path. Version 2 has no controllers here.
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _CGROUP, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUP / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's, which is not there; the root is then its own group.
        folder = root / path.lstrip("/")
        while True:
            limits += _limit(folder / name)
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent
    return limits


def _limit(path: Path) -> list[int]:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return []
    return [int(text)] if text.isdecimal() and int(text) > 0 else []
