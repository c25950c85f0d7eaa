"""What the C library's allocator holds back from the system."""

from __future__ import annotations

import ctypes
import sys


def return_free_memory() -> None:
    """Give freed memory back to the system where that takes asking: glibc keeps it for later allocations."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)
