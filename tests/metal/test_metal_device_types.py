"""What compiling alone says: metal_device.cc against metal-cpp, and our declarations against ONNX Runtime's headers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from metal_provider import CLANG, run
from runtime_headers import headers

ROOT = Path(__file__).parents[2]
METAL = ROOT / "custom_ops" / "metal"
COMPILER = CLANG or shutil.which(os.environ.get("CXX", "c++"))
MLX = "mlx-metal==0.32.4"
SHADER = '#line 1 "x.metal"\nkernel void f() { /* "quotes", \\ and ' + "a long line " * 900 + "*/ }\n"


@pytest.fixture(scope="session")
def metal_cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The headers of metal-cpp, of the wheel that a build on a Mac takes them from."""
    named = os.environ.get("BITNET_ONNX_METAL_CPP")
    if named:
        return Path(named)
    folder = tmp_path_factory.mktemp("mlx")
    platform = ["--platform", "macosx_14_0_arm64", "--only-binary=:all:", "--no-deps"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *platform, MLX]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if result.returncode:
        pytest.skip(f"{MLX} is not to be had: {' '.join(result.stderr.split())[:300]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith(".hpp")])
    return folder / "mlx" / "include" / "metal_cpp"


@pytest.mark.skipif(CLANG is None, reason="metal-cpp has blocks, which only clang compiles")
def test_the_device_compiles_against_metal_cpp(metal_cpp: Path, tmp_path: Path) -> None:
    """With stubs of Apple's own headers; the library cannot be linked here."""
    assert (metal_cpp / "Metal" / "Metal.hpp").is_file()
    flags = ["-std=c++17", "-fblocks", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
    includes = [f"-I{ROOT / 'custom_ops'}", f"-I{Path(__file__).parent / 'apple_stubs'}", "-isystem", metal_cpp]
    target = tmp_path / "metal_device.o"
    run([str(CLANG), *flags, *includes, "-c", METAL / "metal_device.cc", "-o", target])
    symbols = run([shutil.which("nm") or "nm", "-C", target])
    assert "T bitnet::gpu::open_metal()" in symbols
    assert "U bitnet::gpu::kShaders" in symbols


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")
def test_shaders_are_embedded_letter_by_letter(tmp_path: Path) -> None:
    (tmp_path / "x.metal").write_text(SHADER)
    run([sys.executable, METAL / "embed.py", tmp_path / "x.metal", tmp_path / "source.cc"])
    (tmp_path / "main.cc").write_text(
        "#include <cstdio>\nnamespace bitnet::gpu { extern const char kShaders[]; }\n"
        "int main() { std::fputs(bitnet::gpu::kShaders, stdout); }\n"
    )
    run([str(COMPILER), "-std=c++17", tmp_path / "source.cc", tmp_path / "main.cc", "-o", tmp_path / "main"])
    assert run([tmp_path / "main"]) == SHADER


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")
def test_all_shaders_make_one_text(tmp_path: Path) -> None:
    """What Metal is given: each header once, and nothing left to include but Metal's own."""
    shaders = sorted((METAL / "shaders").glob("*.metal"))
    run([sys.executable, METAL / "emulation" / "translate.py", "bundle", *shaders, tmp_path / "all.metal"])
    text = (tmp_path / "all.metal").read_text()
    assert '#include "' not in text
    assert text.count("kernel void matvec(") == text.count("kernel void attention(") == 1
    assert text.count("typedef struct {") == (METAL / "arguments.h").read_text().count("typedef struct {")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")
def test_positions_in_the_interface_of_providers() -> None:
    folder = headers()
    header = folder / "onnxruntime_ep_c_api.h"
    if not header.is_file() or "GetCustomOpDomains" not in header.read_text():
        pytest.skip(f"{folder} holds no onnxruntime_ep_c_api.h of 1.24 or later: set BITNET_ONNX_ORT_HEADERS")
    source = Path(__file__).with_name("ep_abi_offsets.cc")
    run([str(COMPILER), "-std=c++17", "-fsyntax-only", f"-I{folder}", f"-I{ROOT / 'custom_ops'}", source])
