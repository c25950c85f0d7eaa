"""For which platform a shared library was built, read from its first bytes: a loader's own words tell it badly."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from bitnet_onnx.errors import OperatorError

_ELF_MACHINES: Final = {
    3: "x86 with 32 bits",
    40: "Arm with 32 bits",
    62: "x86-64",
    183: "aarch64",
    243: "RISC-V",
    258: "LoongArch",
}
_MACH_MACHINES: Final = {0x01000007: "x86-64", 0x0100000C: "aarch64"}
_MACH_SYSTEMS: Final = {1: "macOS", 2: "iOS", 6: "Mac Catalyst", 7: "the iOS simulator", 11: "visionOS"}
_PE_MACHINES: Final = {0x14C: "x86 with 32 bits", 0x8664: "x86-64", 0xAA64: "aarch64"}
_SYSTEMS: Final = {"darwin": "macOS", "linux": "Linux", "win32": "Windows"}
_SAME_MACHINE: Final = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}

_ELF_LIBRARY: Final = 3
_ELF_LOADED: Final = 1
_MACH_MAGIC: Final = b"\xcf\xfa\xed\xfe"
_MACH_UNIVERSAL: Final = b"\xca\xfe\xba\xbe"
_MACH_LIBRARIES: Final = (6, 8)
_MACH_SEGMENT: Final = 0x19
_MACH_BUILD_VERSION: Final = 0x32
_PE_LIBRARY: Final = 0x2000
# More than any library has: a hostile number must not make reading long.
_MAX_HEADERS: Final = 4096


class _NoLibraryError(Exception):
    """The file is no shared library, with the reason."""


def this_platform() -> str:
    """System and processor of this process, as `Linux on x86-64`."""
    system = _SYSTEMS.get(sys.platform, sys.platform)
    # Windows emulates x86-64 on Arm: what counts is the interpreter.
    machine = os.environ.get("PROCESSOR_ARCHITECTURE", "") if sys.platform == "win32" else os.uname().machine
    return f"{system} on {_SAME_MACHINE.get(machine.lower(), machine)}"


def check_binary(path: Path, remedy: str) -> None:
    """Checks that a file is a whole shared library for this platform.

    Args:
        path: the file.
        remedy: what the user can do, for the message.

    Raises:
        OperatorError: it is not, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            platforms = list(_platforms(file, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    except struct.error:
        raise OperatorError(f"{path} is cut short within its header; {remedy}") from None
    except _NoLibraryError as error:
        raise OperatorError(f"{path} {error}; {remedy}") from None
    here = this_platform()
    system, _, machine = here.partition(" on ")
    # Elsewhere the loader judges.
    known = system in _SYSTEMS.values() and machine in _SAME_MACHINE.values()
    if known and here not in platforms:
        raise OperatorError(f"{path} is for {' and '.join(platforms)}, and this is {here}: {remedy}")


def _platforms(file: BinaryIO, size: int) -> Iterator[str]:
    magic = file.read(4)
    if magic == b"\x7fELF":
        yield _elf(file, size)
    elif magic == _MACH_MAGIC:
        yield _mach(file, 0, size)
    elif magic == _MACH_UNIVERSAL:
        (count,) = struct.unpack(">I", file.read(4))
        if not 1 <= count <= len(_MACH_MACHINES) * 4:
            raise _NoLibraryError("is not a shared library")
        places = [struct.unpack(">5I", file.read(20))[2:4] for _ in range(count)]
        for offset, length in places:
            _check_end(offset + length, size)
            file.seek(offset)
            if file.read(4) == _MACH_MAGIC:
                yield _mach(file, offset, offset + length)
    elif magic[:2] == b"MZ":
        yield _pe(file, size)
    else:
        raise _NoLibraryError(f"is not a shared library: it begins with {magic!r}")


def _elf(file: BinaryIO, size: int) -> str:
    wide, little = struct.unpack("BB", file.read(2))
    if wide not in (1, 2) or little not in (1, 2):
        raise _NoLibraryError("is not a shared library: its ELF header is broken")
    order = "<>"[little - 1]
    file.seek(16)
    kind, machine = struct.unpack(f"{order}HH", file.read(4))
    if kind != _ELF_LIBRARY:
        raise _NoLibraryError("is not a shared library, but another kind of ELF file")
    name = f"Linux on {_ELF_MACHINES.get(machine, f'processor {machine}')}"
    if wide == 1:
        return name if "32 bits" in name else f"{name} with 32 bits"
    file.seek(32)
    (start,) = struct.unpack(f"{order}Q", file.read(8))
    file.seek(54)
    entry, count = struct.unpack(f"{order}HH", file.read(4))
    for index in range(count):
        file.seek(start + index * entry)
        loaded, _flags, offset, _address, _physical, length = struct.unpack(f"{order}IIQQQQ", file.read(40))
        if loaded == _ELF_LOADED:
            _check_end(offset + length, size)
    return name


def _mach(file: BinaryIO, start: int, end: int) -> str:
    machine, _subtype, kind, commands, length, _flags = struct.unpack("<6I", file.read(24))
    if kind not in _MACH_LIBRARIES:
        raise _NoLibraryError("is not a shared library, but another kind of Mach-O file")
    system = "macOS"
    place = start + 32
    _check_end(place + length, end)
    if commands > _MAX_HEADERS:
        raise _NoLibraryError(f"is not a shared library: it says that it has {commands} load commands")
    for _ in range(commands):
        file.seek(place)
        command, bytes_of_it = struct.unpack("<2I", file.read(8))
        if command == _MACH_BUILD_VERSION:
            (value,) = struct.unpack("<I", file.read(4))
            system = _MACH_SYSTEMS.get(value, f"system {value} of Apple")
        elif command == _MACH_SEGMENT:
            file.seek(place + 40)
            _check_end(sum(struct.unpack("<2Q", file.read(16))), end - start)
        place += max(bytes_of_it, 8)
    return f"{system} on {_MACH_MACHINES.get(machine, f'processor {machine}')}"


def _pe(file: BinaryIO, size: int) -> str:
    file.seek(60)
    (start,) = struct.unpack("<I", file.read(4))
    _check_end(start + 24, size)
    file.seek(start)
    if file.read(4) != b"PE\0\0":
        raise _NoLibraryError("is not a shared library: it begins with b'MZ'")
    machine, sections, optional, characteristics = struct.unpack("<HH12xHH", file.read(20))
    if not characteristics & _PE_LIBRARY:
        raise _NoLibraryError("is not a shared library, but a program for Windows")
    for index in range(sections):
        file.seek(start + 24 + optional + 40 * index + 16)
        _check_end(sum(struct.unpack("<2I", file.read(8))), size)
    return f"Windows on {_PE_MACHINES.get(machine, f'processor {machine:#x}')}"


def _check_end(end: int, size: int) -> None:
    if end > size:
        raise _NoLibraryError(f"is cut short: it has {size} bytes of at least {end}")
