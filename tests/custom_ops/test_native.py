"""The C++ side: its own tests under the sanitizers, the interface against the official header, odd machines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runtime_headers import headers

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def cmake() -> str:
    found = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip("cmake is not installed")
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="the sanitizer options are those of GCC and Clang")
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")
def test_kernels_under_sanitizers(no_library, tmp_path) -> None:
    tool = cmake()
    options = ["-DBITNET_OPS_BUILD_TESTS=ON", "-DBITNET_OPS_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Release"]
    configured = run(tool, "-S", ROOT, "-B", tmp_path, *options)
    assert configured.returncode == 0, configured.stderr
    built = run(tool, "--build", tmp_path, "--parallel", "2", "--target", "bitnet_kernel_tests")
    assert built.returncode == 0, built.stdout + built.stderr
    for isa in ("", "scalar"):
        tested = run(tmp_path / "bitnet_kernel_tests", BITNET_ONNX_ISA=isa)
        assert tested.returncode == 0, tested.stdout + tested.stderr
        assert "0 failures" in tested.stdout


def test_without_a_compiler_nothing_is_built(no_library, tmp_path) -> None:
    """Configuring succeeds with one warning, so that the Python part installs."""
    tool = cmake()
    empty = tmp_path / "empty"
    empty.mkdir()
    make = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
    if make is None:
        pytest.skip("ninja is not installed")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={make}"]
    result = run(tool, "-S", ROOT, "-B", tmp_path / "build", *generator, PATH=str(empty), CXX="")
    assert result.returncode == 0, result.stderr
    assert "installed without its operator library" in " ".join(result.stderr.split())


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")
def test_positions_in_the_runtime_interface(no_library) -> None:
    folder = headers()
    source = Path(__file__).with_name("abi_offsets.cc")
    options = ["-std=c++17", "-fsyntax-only", f"-I{folder}", f"-I{ROOT / 'custom_ops'}"]
    result = run(str(COMPILER), *options, source)
    assert result.returncode == 0, result.stderr
