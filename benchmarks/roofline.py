"""What does the machine allow? Read bandwidth, and the rate at which it issues 8-bit products."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.errors import OperatorError

_NAMES = {"win32": "bitnet_roofline.dll", "darwin": "libbitnet_roofline.dylib"}
#: Larger than the caches of the processors that anyone runs this on.
BUFFER_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Roofline:
    """Rates of `threads` threads together; None where the processor's rate is not known to us."""

    threads: int
    read_bytes_per_s: float
    multiply_adds_per_s: float | None

    def best(self, other: Roofline | None) -> Roofline:
        """The higher of two measurements: a disturbed one is below the limit, none is above it."""
        if other is None:
            return self
        products = [r.multiply_adds_per_s for r in (self, other) if r.multiply_adds_per_s is not None]
        return Roofline(self.threads, max(self.read_bytes_per_s, other.read_bytes_per_s), max(products, default=None))

    def seconds(self, weight_bytes: float, multiply_adds: float) -> float:
        """The least time for work that reads `weight_bytes` once: the slower of the two limits."""
        memory = weight_bytes / self.read_bytes_per_s
        if self.multiply_adds_per_s is None:
            return memory
        return max(memory, multiply_adds / self.multiply_adds_per_s)

    def as_dict(self) -> dict[str, float | None]:
        """All figures, for JSON."""
        return {
            "threads": self.threads,
            "read_bytes_per_s": self.read_bytes_per_s,
            "multiply_adds_per_s": self.multiply_adds_per_s,
        }


def roofline_path() -> Path | None:
    """The library of the two loops, installed beside the operator library, or None where it was not built."""
    operators = library_path()
    if operators is None:
        return None
    path = operators.with_name(_NAMES.get(sys.platform, "libbitnet_roofline.so"))
    return path if path.is_file() else None


class Meter:
    """Measures the limits, as often as one likes, in a buffer that is filled once.

    Args:
        path: the library, see `roofline_path`.
        buffer_bytes: bytes to read over and over; several times the last cache.

    Raises:
        OperatorError: the library cannot be loaded.
    """

    def __init__(self, path: Path, buffer_bytes: int = BUFFER_BYTES) -> None:
        try:
            library = ctypes.CDLL(str(path))
            self._reads = (library.BitnetRooflineRead, library.BitnetRooflineReadStreams)
            self._products = library.BitnetRooflineMultiplyAdds
        except (OSError, AttributeError) as error:
            raise OperatorError(f"{path} cannot be used: {error}; reinstall bitnet-onnx") from error
        for function in self._reads:
            function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_double]
            function.restype = ctypes.c_double
        self._products.argtypes = [ctypes.c_double]
        self._products.restype = ctypes.c_double
        # Ones, because untouched memory would be one page of zeros.
        self._buffer = np.ones(buffer_bytes, np.uint8)

    def measure(self, threads: int, seconds: float = 0.3) -> Roofline:
        """Both rates with `threads` threads, each loop for `seconds`; the better way of reading counts."""
        share = self._buffer.size // threads
        address = self._buffer.ctypes.data

        def read(function: Callable[..., float]) -> float:
            return _together(lambda thread: function(address + thread * share, share, seconds), threads)

        products = _together(lambda _: float(self._products(seconds)), threads)
        return Roofline(threads, max(map(read, self._reads)), products or None)


def _together(rate: Callable[[int], float], threads: int) -> float:
    """The sum of what the threads reach when they start at the same moment."""
    barrier = threading.Barrier(threads)

    def run(thread: int) -> float:
        barrier.wait()
        return rate(thread)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(run, range(threads)))
