"""The Metal shaders on this machine: built by clang, loaded here, one dispatch at a time with numpy arrays."""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parents[2]
METAL = ROOT / "custom_ops" / "metal"
SHADERS = METAL / "shaders"
BUILT = ROOT / "build" / "metal-emulation"
CLANG = shutil.which("clang++-19") or shutil.which("clang++")
#: Exit status of a process in which AddressSanitizer has found something.
SANITIZER_STATUS = 66

_SANITIZE = ("-fsanitize=address", "-shared-libsan")
_WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-missing-braces")
_INCLUDES = tuple(f"-I{METAL / folder}" for folder in ("emulation/include", "emulation", "shaders", "."))
_FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-ffp-contract=off", *_WARNINGS, *_INCLUDES)

Edit = Callable[[str], str]


class MetalError(RuntimeError):
    """What the device reported."""


@cache
def translator() -> ModuleType:
    """custom_ops/metal/emulation/translate.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("metal_translate", METAL / "emulation" / "translate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def constants() -> dict[str, int]:
    """Enumerators of arguments.h."""
    text = re.sub(r"/\*.*?\*/", "", (METAL / "arguments.h").read_text(), flags=re.DOTALL)
    return {name: int(value) for name, value in re.findall(r"(\bk\w+) = (\d+)", text)}


@cache
def structures() -> dict[str, type[ctypes.Structure]]:
    """Argument structures of arguments.h."""
    text = re.sub(r"/\*.*?\*/", "", (METAL / "arguments.h").read_text(), flags=re.DOTALL)
    types = {"uint32_t": ctypes.c_uint32, "float": ctypes.c_float}

    def field(kind: str, name: str, count: str) -> tuple[str, type]:
        return (name, types[kind] * constants()[count]) if count else (name, types[kind])

    return {
        name: type(
            name,
            (ctypes.Structure,),
            {"_fields_": [field(*found) for found in re.findall(r"(\w+)\s+(\w+)(?:\[(\w+)\])?;", body)]},
        )
        for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, re.DOTALL)
    }


def sources() -> list[Path]:
    """All shaders."""
    return sorted(SHADERS.glob("*.metal"))


def build(edits: Mapping[str, Edit] | None = None, sanitize: bool = False, extra: str = "") -> Path:
    """The library of all shaders; each object is compiled once for the same text.

    Args:
        extra: one more file of shaders.
        edits: what to change in the shaders of these stems, before they are translated.
        sanitize: with AddressSanitizer.
    """
    edits = edits or {}
    texts: dict[str, str] = {}
    for source in sources():
        text = translator().bundle(source)
        if source.stem in edits:
            changed = edits[source.stem](text)
            if changed == text:
                raise ValueError(f"the edit of {source.name} changes nothing")
            text = changed
        texts[source.stem] = translator().to_cpp(text)
    if extra:
        texts["extra"] = translator().to_cpp(extra)
    host = [*sorted((METAL / "emulation").glob("*.cc")), *sorted((METAL / "tests").glob("*.cc"))]
    headers = [
        path for folder in ("emulation", "emulation/include", ".") for path in sorted((METAL / folder).glob("*"))
    ]
    common = b"".join(
        path.read_bytes() for path in headers if path.is_file() and path.suffix not in (".cc", ".py", ".md")
    )
    flags = (*_FLAGS, *(_SANITIZE if sanitize else ()))
    BUILT.mkdir(parents=True, exist_ok=True)
    jobs = {}
    for stem, content in [*texts.items(), *((path.stem, path.read_text()) for path in host)]:
        folder = next((path.parent for path in host if path.stem == stem), METAL)
        options = (*flags, "-O0", "-w") if stem in edits else flags
        digest = hashlib.sha256(common + content.encode() + " ".join(options).encode()).hexdigest()[:24]
        jobs[BUILT / f"{stem}-{digest}.o"] = (stem, content, folder, options)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda item: _compile(item[0], *item[1]), jobs.items()))
    digest = hashlib.sha256("".join(sorted(path.name for path in jobs)).encode()).hexdigest()[:24]
    library = BUILT / f"emulation-{digest}.so"
    if not library.is_file():
        part = library.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        _run([str(CLANG), "-shared", *(_SANITIZE if sanitize else ()), "-o", str(part), *map(str, jobs)])
        part.replace(library)
    return library


def _compile(target: Path, stem: str, content: str, folder: Path, flags: Sequence[str]) -> None:
    if target.is_file():
        return
    mark = f"{os.getpid()}-{threading.get_ident()}"
    source, part = target.with_suffix(f".{mark}.cc"), target.with_suffix(f".{mark}.o")
    source.write_text(f'#line 1 "{stem}"\n{content}')
    _run([str(CLANG), *flags, f"-I{folder}", "-c", str(source), "-o", str(part)])
    source.unlink()
    part.replace(target)


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")


def sanitizer_environment() -> dict[str, str] | None:
    """Variables for a Python process that loads a sanitized library; None where there is no such runtime."""
    found = subprocess.run(
        [str(CLANG), "-print-file-name=libclang_rt.asan-x86_64.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_file():
        found = subprocess.run(
            [str(CLANG), "-print-file-name=libclang_rt.asan.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
    if not Path(found).is_file():
        return None
    # The interpreter's own allocations at its end are no leaks of ours.
    return {
        "LD_PRELOAD": found,
        "ASAN_OPTIONS": f"detect_leaks=0:detect_stack_use_after_return=0:exitcode={SANITIZER_STATUS}",
    }


@dataclasses.dataclass
class Emulation:
    """One device; every run allocates, copies, dispatches and copies back."""

    library: ctypes.CDLL
    device: int

    @classmethod
    def open(cls, path: Path) -> Emulation:
        library = ctypes.CDLL(str(path))
        for name in ("Open", "Allocate", "Contents"):
            getattr(library, f"BitnetMetal{name}").restype = ctypes.c_void_p
        return cls(library, library.BitnetMetalOpen())

    def seed(self, value: int) -> None:
        self.library.BitnetMetalSeed(ctypes.c_uint64(value))

    def run(
        self,
        kernel: str,
        arguments: ctypes.Structure,
        settings: Mapping[str, int],
        buffers: Mapping[str, npt.NDArray[np.generic] | tuple[npt.NDArray[np.generic], int]],
        grid: tuple[int, int, int],
        outputs: Sequence[str] = (),
        keep: Sequence[str] = (),
    ) -> None:
        """Dispatch once.

        Args:
            kernel: its name.
            arguments: bound at index 0.
            settings: function constants by their names in arguments.h without `kConstant`.
            buffers: arrays by the names of their indices; a pair is an array and an offset in elements. The same array
                twice is one buffer.
            grid: threadgroups.
            outputs: names of the buffers that are copied back into their arrays.
            keep: those of them that begin with what their arrays hold; others begin with poison.

        Raises:
            MetalError: what the device reported.
        """
        names = constants()
        values = (ctypes.c_uint32 * (2 * len(settings)))()
        for place, (name, value) in enumerate(settings.items()):
            values[2 * place], values[2 * place + 1] = names[f"kConstant{name}"], int(value)
        allocated: dict[int, tuple[int, npt.NDArray[np.generic]]] = {}
        indices, pointers, offsets = [], [], []
        for name, given in buffers.items():
            array, offset = given if isinstance(given, tuple) else (given, 0)
            assert array.flags.c_contiguous
            if id(array) not in allocated:
                memory = self.library.BitnetMetalAllocate(ctypes.c_void_p(self.device), ctypes.c_size_t(array.nbytes))
                allocated[id(array)] = memory, array
                if name not in outputs or name in keep:
                    ctypes.memmove(self._contents(memory), array.ctypes.data, array.nbytes)
            indices.append(names[name])
            pointers.append(allocated[id(array)][0])
            offsets.append(offset * array.itemsize)
        error = ctypes.create_string_buffer(1000)
        count = len(indices)
        failed = self.library.BitnetMetalRun(
            ctypes.c_void_p(self.device),
            kernel.encode(),
            values,
            ctypes.c_size_t(len(settings)),
            (ctypes.c_uint32 * count)(*indices),
            (ctypes.c_void_p * count)(*pointers),
            (ctypes.c_size_t * count)(*offsets),
            ctypes.c_size_t(count),
            ctypes.byref(arguments),
            ctypes.c_size_t(ctypes.sizeof(arguments)),
            (ctypes.c_uint32 * 3)(*grid),
            ctypes.c_uint32(32 * settings["Simdgroups"]),
            error,
            ctypes.c_size_t(len(error)),
        )
        for name in () if failed else outputs:
            given = buffers[name]
            array = given[0] if isinstance(given, tuple) else given
            ctypes.memmove(array.ctypes.data, self._contents(allocated[id(array)][0]), array.nbytes)
        for memory, _ in allocated.values():
            self.library.BitnetMetalFree(ctypes.c_void_p(memory))
        if failed:
            raise MetalError(error.value.decode())

    def _contents(self, memory: int) -> int:
        pointer: int = self.library.BitnetMetalContents(ctypes.c_void_p(memory))
        return pointer


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
