"""Files that are no operator library of this platform are told from their first bytes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from foreign_libraries import AARCH64, X86_64, elf, mach, pe, universal

from bitnet_onnx.custom_ops import _binary, library_path
from bitnet_onnx.custom_ops._binary import check_binary, this_platform
from bitnet_onnx.errors import OperatorError

ARM_MAC, INTEL_MAC = 0x0100000C, 0x01000007
CUT = elf()[:100]


@pytest.fixture(autouse=True)
def _here(no_library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_binary, "this_platform", lambda: "Linux on x86-64")


def refusal(path: Path) -> str:
    with pytest.raises(OperatorError) as caught:
        check_binary(path, "do this")
    text = str(caught.value)
    assert text.startswith(str(path))
    assert text.endswith("do this")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("content", "platform"),
    [
        (elf(AARCH64), "Linux on aarch64"),
        (elf(40, wide=1), "Linux on Arm with 32 bits"),
        (elf(X86_64, wide=1), "Linux on x86-64 with 32 bits"),
        (elf(9999), "Linux on processor 9999"),
        (elf(22, little=2), "Linux on processor 22"),
        (mach(), "macOS on aarch64"),
        (mach(INTEL_MAC, kind=8, system=None), "macOS on x86-64"),
        (mach(system=2), "iOS on aarch64"),
        (mach(system=99), "system 99 of Apple on aarch64"),
        (universal(mach(INTEL_MAC), mach()), "macOS on x86-64 and macOS on aarch64"),
        (pe(), "Windows on x86-64"),
        (pe(0xAA64), "Windows on aarch64"),
        (pe(0x1234), "Windows on processor 0x1234"),
    ],
)
def test_another_platform_is_named(tmp_path: Path, content: bytes, platform: str) -> None:
    file = tmp_path / "libbitnet_ops.so"
    file.write_bytes(content)
    assert f"is for {platform}, and this is Linux on x86-64: do this" in refusal(file)


@pytest.mark.parametrize(
    ("here", "content"),
    [
        ("Linux on x86-64", elf()),
        ("Linux on aarch64", elf(AARCH64)),
        ("macOS on x86-64", universal(mach(INTEL_MAC), mach())),
        ("macOS on aarch64", mach()),
        ("Windows on x86-64", pe()),
        # Of these the loader judges.
        ("freebsd14 on x86-64", elf()),
        ("Linux on ppc64le", elf(21)),
    ],
)
def test_this_platform_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str, content: bytes) -> None:
    monkeypatch.setattr(_binary, "this_platform", lambda: here)
    (tmp_path / "library").write_bytes(content)
    check_binary(tmp_path / "library", "do this")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a shared library: it begins with b''"),
        (b"#!/bin/sh\n", "is not a shared library: it begins with b'#!/b'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a shared library"),
        (elf(kind=2), "another kind of ELF file"),
        (elf(wide=7), "its ELF header is broken"),
        (elf(loaded=400_000), "is cut short: it has 120 bytes of at least 400000"),
        (CUT, "is cut short within its header"),
        (elf()[:5], "is cut short within its header"),
        (mach(kind=2), "another kind of Mach-O file"),
        (mach()[:40], "is cut short: it has 40 bytes of at least 128"),
        (mach(loaded=400_000), "is cut short: it has 128 bytes of at least 400000"),
        (mach()[:20], "is cut short within its header"),
        (universal(mach(), mach())[:-9], "is cut short"),
        (b"\xca\xfe\xba\xbe\x00\x00\x00\x34", "is not a shared library"),  # a class of Java
        (pe(characteristics=2), "a program for Windows"),
        (pe()[:70], "is cut short: it has 70 bytes of at least 88"),
        (pe()[:100], "is cut short within its header"),
        (pe(loaded=400_000), "is cut short: it has 128 bytes of at least 400000"),
        (pe()[:50], "is cut short within its header"),
        (pe(mark=b"NE\0\0"), "is not a shared library"),
    ],
)
def test_what_is_no_library(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "libbitnet_ops.so"
    file.write_bytes(content)
    assert words in refusal(file)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "absent")


def test_hostile_counts_end_soon(tmp_path: Path) -> None:
    endless = bytearray(mach(system=None))
    endless[16:20] = (2**32 - 1).to_bytes(4, "little")
    (tmp_path / "mach").write_bytes(bytes(endless))
    assert "it says that it has 4294967295 load commands" in refusal(tmp_path / "mach")
    many = bytearray(elf())
    many[56:58] = b"\xff\xff"
    (tmp_path / "elf").write_bytes(bytes(many))
    assert "is cut short" in refusal(tmp_path / "elf")


def test_the_library_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    path = library_path()
    if path is None:
        pytest.skip("the operator library is not built: no C++17 compiler when bitnet-onnx was installed")
    monkeypatch.setattr(_binary, "this_platform", this_platform)
    check_binary(path, "do this")
    system = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}[sys.platform]
    assert this_platform().startswith(f"{system} on ")
