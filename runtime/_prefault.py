"""Mapping a file's pages in before they are touched, on a core that would idle.

ONNX Runtime maps the weights, and the first step takes a page fault for every few of their pages: 0.1 s a gigabyte
even when all of it is cached, and the speed of the disk when it is not. The tokenizer is parsed at that time, which
keeps one core and Python's lock busy, so the pages are asked for in a single system call that needs neither.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from pathlib import Path

_MADV_POPULATE_READ = 22
#: The kernel locks the address space against other changes for the length of one range.
_RANGE_BYTES = 4 * 2**20
_MAX_RANGES = 1024  # IOV_MAX
#: Of the memory that could be had. Files that fill more of it would push out what is needed.
_MOST_OF_MEMORY = 0.5


class _Range(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def prefault(path: Path) -> threading.Thread | None:
    """Start to map in what this process has mapped of `path`; whoever touches a page earlier does not wait for it.

    Returns:
        The thread that waits for the kernel, or None where this cannot be done (Linux 6.13 and glibc 2.36 can) or
        the file is more than half of what memory could hold.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return None
    if path.stat().st_size > _MOST_OF_MEMORY * _available_bytes():
        return None
    advise = getattr(ctypes.CDLL(None), "process_madvise", None)
    ranges = _mapped_ranges(os.path.realpath(path))
    if advise is None or not ranges:
        return None
    array = (_Range * len(ranges))(*ranges)
    # A daemon: the end of the process need not wait for a disk.
    thread = threading.Thread(target=_populate, args=(advise, array), name="prefault", daemon=True)
    thread.start()
    return thread


def _populate(advise: ctypes._NamedFuncPointer, array: ctypes.Array[_Range]) -> None:
    # Either call may be refused, the second always is by older kernels. Then the first step does the work.
    with contextlib.suppress(OSError):
        process = os.pidfd_open(os.getpid())
        advise(process, array, ctypes.c_size_t(len(array)), _MADV_POPULATE_READ, 0)
        os.close(process)


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _mapped_ranges(path: str) -> list[_Range]:
    """The parts of the address space that are mapped from `path`."""
    ranges = []
    # Each line: first-end, permissions, offset, device, inode, path.
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == path:
            first, end = (int(address, 16) for address in fields[0].split("-"))
            ranges += [_Range(at, min(_RANGE_BYTES, end - at)) for at in range(first, end, _RANGE_BYTES)]
    return ranges[:_MAX_RANGES]
