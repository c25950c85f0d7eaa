"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import onnxruntime as ort

import bitnet_onnx
from bitnet_onnx.custom_ops import library_version

#: Processor features that a kernel may use; the hundred others say nothing here.
_FLAGS = frozenset(
    {"avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_vbmi", "fma", "ssse3"}
    | {"asimd", "asimddp", "i8mm", "sve", "sve2"}
)
_CPU_INFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe() -> dict[str, object]:
    """Processor, memory, versions: everything that a figure depends on and its reader cannot see."""
    processors = _processors()
    first = processors[0] if processors else {}
    flags = (first.get("flags") or first.get("Features") or "").split()
    return {
        "processor": first.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "flags": sorted(_FLAGS.intersection(flags)),
        "cores": physical_cores(),
        "logical_processors": len(_usable()),
        "last_level_cache_bytes": last_level_cache(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "bitnet_onnx": bitnet_onnx.__version__,
        "operator_library": library_version(),
    }


def physical_cores() -> int:
    """Cores that this process may use, two threads of one core counted once: ONNX Runtime's own default."""
    usable = _usable()
    cores = {
        (entry.get("physical id"), entry["core id"])
        for entry in _processors()
        if "core id" in entry and int(entry.get("processor", -1)) in usable
    }
    return len(cores) or len(usable)


def last_level_cache() -> int | None:
    """Bytes of the largest cache, or None where the system does not tell."""
    texts = [path.read_text(encoding="ascii").strip() for path in _CACHES.glob("index*/size")]
    found = [re.fullmatch(r"(\d+)([KM])", text) for text in texts]
    sizes = [int(size[1]) << {"K": 10, "M": 20}[size[2]] for size in found if size is not None]
    return max(sizes, default=None)


def _usable() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _processors() -> list[dict[str, str]]:
    if not _CPU_INFO.is_file():
        return []
    blocks = _CPU_INFO.read_text(encoding="utf-8", errors="replace").strip().split("\n\n")
    return [
        {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}
        for block in blocks
    ]
