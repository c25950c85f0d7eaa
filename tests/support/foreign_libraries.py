"""Files that pose as the operator library: of other platforms, of other versions, and none at all."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

X86_64, AARCH64 = 62, 183


def elf(machine: int = X86_64, *, kind: int = 3, wide: int = 2, little: int = 1, loaded: int = 64) -> bytes:
    """A shared library for Linux that has one segment of `loaded` bytes and is 120 bytes long."""
    order = "<" if little == 1 else ">"
    ident = b"\x7fELF" + bytes([wide, little, 1]) + bytes(9)
    header = struct.pack(f"{order}HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return ident + header + struct.pack(f"{order}IIQQQQQQ", 1, 5, 0, 0, 0, loaded, loaded, 4096)


def mach(machine: int = 0x0100000C, *, kind: int = 6, system: int | None = 1, loaded: int = 32) -> bytes:
    """A library for Apple's systems with a segment of `loaded` bytes; without `system` it does not say which."""
    commands = [struct.pack("<2I16s4Q4I", 0x19, 72, b"__TEXT", 0, 4096, 0, loaded, 5, 5, 0, 0)]
    if system is not None:
        commands.append(struct.pack("<6I", 0x32, 24, system, 0, 0, 0))
    size = sum(map(len, commands))
    return struct.pack("<8I", 0xFEEDFACF, machine, 0, kind, len(commands), size, 0, 0) + b"".join(commands)


def universal(*parts: bytes) -> bytes:
    """Several libraries for Apple's processors in one file."""
    start = 8 + 20 * len(parts)
    header = struct.pack(">2I", 0xCAFEBABE, len(parts))
    for part in parts:
        header += struct.pack(">5I", 0, 0, start, len(part), 0)
        start += len(part)
    return header + b"".join(parts)


def pe(machine: int = 0x8664, *, characteristics: int = 0x2022, mark: bytes = b"PE\0\0", loaded: int = 64) -> bytes:
    """A DLL for Windows with a section of `loaded` bytes."""
    header = struct.pack("<HHIIIHH", machine, 1, 0, 0, 0, 0, characteristics)
    section = struct.pack("<8s6I2HI", b".text", loaded, 4096, loaded, 0, 0, 0, 0, 0, 0)
    return b"MZ" + bytes(58) + struct.pack("<I", 64) + mark + header + section


def compiled(
    folder: Path, compiler: str, *, oldest: int = 1, newest: int = 1, without: str = "", name: str = "other"
) -> Path:
    """A library of this platform with the exports of ours, `without` one of them, that registers nothing."""
    functions = {
        "RegisterCustomOps": "void* RegisterCustomOps(void* o, void* a) { (void)o; (void)a; return 0; }",
        "BitnetOpsVersion": 'const char* BitnetOpsVersion(void) { return "9.1.0"; }',
        "BitnetOpsIsa": 'const char* BitnetOpsIsa(void) { return "none"; }',
        "BitnetOpsOperatorVersion": f"int BitnetOpsOperatorVersion(void) {{ return {newest}; }}",
        "BitnetOpsOldestOperatorVersion": f"int BitnetOpsOldestOperatorVersion(void) {{ return {oldest}; }}",
    }
    source, library = folder / f"{name}.c", folder / f"lib{name}.so"
    source.write_text("\n".join(text for function, text in functions.items() if function != without) + "\n")
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True, timeout=60)
    return library
