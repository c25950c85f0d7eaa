"""The Arm kernels, cross-compiled and run under qemu-user on processors with and without their instructions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
LIBRARIES = Path("/usr/aarch64-linux-gnu")

# The processor that qemu plays, and the kernels that it should choose.
PROCESSORS = {"cortex-a53": "neon", "cortex-a76": "dotprod", "max": "i8mm"}


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def kernel_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ tests of the kernels as a program for 64-bit Arm."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for tool in ("cmake", COMPILER, EMULATOR):
        if shutil.which(tool, path=path) is None:
            pytest.skip(f"{tool} is not installed: Debian's packages are cmake, g++-aarch64-linux-gnu and qemu-user")
    cmake = str(shutil.which("cmake", path=path))
    build = tmp_path_factory.mktemp("arm")
    options = [
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DCMAKE_CXX_FLAGS=-Werror",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBITNET_OPS_BUILD_TESTS=ON",
    ]
    # Options of the native build must not reach the cross compiler.
    native = dict.fromkeys(("CFLAGS", "CXXFLAGS", "LDFLAGS"), "")
    configured = run(cmake, "-S", ROOT, "-B", build, *options, **native)
    assert configured.returncode == 0, configured.stderr
    built = run(cmake, "--build", build, "--parallel", "2", "--target", "bitnet_kernel_tests")
    assert built.returncode == 0, built.stdout + built.stderr
    return build / "bitnet_kernel_tests"


def emulate(program: Path, processor: str, isa: str) -> subprocess.CompletedProcess[str]:
    return run(EMULATOR, "-cpu", processor, "-L", LIBRARIES, program, BITNET_ONNX_ISA=isa)


@pytest.mark.parametrize("isa", ["neon", "dotprod", "i8mm"])
def test_kernels_equal_the_scalar_twin(no_library, kernel_tests: Path, isa: str) -> None:
    tested = emulate(kernel_tests, "max", isa)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert f"{isa} kernels: 0 failures" in tested.stdout


@pytest.mark.parametrize(("processor", "chosen"), PROCESSORS.items())
def test_the_best_kernels_of_the_processor_are_chosen(
    no_library, kernel_tests: Path, processor: str, chosen: str
) -> None:
    listed = run(EMULATOR, "-cpu", processor, "-L", LIBRARIES, kernel_tests, "--choice", BITNET_ONNX_ISA="")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert listed.stdout.split() == ["chosen:", chosen]


def test_kernels_that_the_processor_cannot_run_are_refused(no_library, kernel_tests: Path) -> None:
    refused = emulate(kernel_tests, "cortex-a53", "dotprod")
    assert refused.returncode != 0
    assert "BITNET_ONNX_ISA is 'dotprod', which this processor does not have" in refused.stdout
