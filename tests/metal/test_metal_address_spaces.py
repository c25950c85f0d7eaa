"""The shaders as OpenCL C++, whose compiler knows address spaces: what it refuses, Metal's refuses too."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from metal_emulation import METAL, sources, translator

# Without the generic address space, which Metal does not have, a pointer with no address space is a private one.
_FEATURES = ("__opencl_c_generic_address_space", "__opencl_c_pipes", "__opencl_c_device_enqueue")
_FLAGS = (
    *("-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-target", "spir64", "-fsyntax-only"),
    *("-Xclang", "-cl-ext=" + ",".join(f"-{name}" for name in _FEATURES)),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function"),
    f"-I{METAL / 'emulation' / 'opencl'}",
)
#: What is left out of a shader, and what the compiler must say.
REMOVED = [
    ("bitlinear", "device const float* scale [[buffer", "const float* scale [[buffer", "pointer arguments to kernel"),
    ("bitlinear", "inline device const uint* unit_at", "inline const uint* unit_at", "cannot initialize return object"),
    ("bitlinear", "threadgroup int* partial)", "int* partial)", "no matching function"),
    (
        "norm",
        "device const uchar* residual, device uchar* sum",
        "device const uchar* residual, uchar* sum",
        "no matching",
    ),
    ("attention", "device const float* value_scale) {", "const float* value_scale) {", "no matching function"),
    ("rope", "((device char*)cache)", "((char*)cache)", "C-style cast"),
    ("elementwise", "device uchar* y [[buffer", "uchar* y [[buffer", "pointer arguments to kernel"),
]


def check(clang: str, text: str, folder: Path) -> str:
    """What the compiler says."""
    source = folder / "shader.clcpp"
    source.write_text(translator().to_opencl(text))
    result = subprocess.run([clang, *_FLAGS, str(source)], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode != 0) == bool(result.stderr)
    return result.stderr


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
def test_passes(clang: str, source: Path, tmp_path: Path) -> None:
    assert check(clang, translator().bundle(source), tmp_path) == ""


def test_all_in_one_text(clang: str, tmp_path: Path) -> None:
    """As a host compiles them: one library of all shaders."""
    seen: set[Path] = set()
    assert check(clang, "".join(translator().bundle(source, seen) for source in sources()), tmp_path) == ""


@pytest.mark.parametrize(("stem", "old", "new", "message"), REMOVED, ids=[f"{r[0]}: {r[1]}" for r in REMOVED])
def test_a_removed_address_space_is_caught(
    clang: str, stem: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    text = translator().bundle(METAL / "shaders" / f"{stem}.metal")
    assert old in text
    assert message in check(clang, text.replace(old, new, 1), tmp_path)


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
def test_every_pointer_has_an_address_space(source: Path) -> None:
    """Metal wants one for each pointer, where OpenCL takes a private one."""
    text = re.sub(r"//.*", "", translator().bundle(source))
    for match in re.finditer(r"[\w ]*?\b(?:uchar|char|half|float|int|uint|long|char4|\w+Arguments)\*", text):
        assert re.search(r"\b(device|constant|threadgroup|thread)\b", match[0]), match[0]
