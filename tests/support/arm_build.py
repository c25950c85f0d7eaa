"""The operator library and its C++ tests for 64-bit Arm Linux: built by the preset, run under qemu-user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EMULATOR = "qemu-aarch64"
LIBRARIES = Path("/usr/aarch64-linux-gnu")
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program in the repository's root, with output as text."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | {"PATH": _PATH} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def build(folder: Path, *targets: str, static: bool = False) -> None:
    """Build `targets` in `folder` with the preset; a static build after a dynamic one reuses its kernels."""
    for tool in ("cmake", "aarch64-linux-gnu-g++", EMULATOR):
        if shutil.which(tool, path=_PATH) is None:
            pytest.skip(f"{tool} is not installed: Debian's packages are cmake, g++-aarch64-linux-gnu and qemu-user")
    options = ["-DBITNET_OPS_BUILD_TESTS=ON", f"-DBITNET_OPS_STATIC={'ON' if static else 'OFF'}"]
    # Options of the native build must not reach the cross compiler.
    native = dict.fromkeys(("CFLAGS", "CXXFLAGS", "LDFLAGS"), "")
    warnings = "-DCMAKE_CXX_FLAGS=-Werror"
    configured = run("cmake", "--preset", "linux-aarch64", "-B", folder, warnings, *options, **native)
    assert configured.returncode == 0, configured.stderr
    built = run("cmake", "--build", folder, "--parallel", "2", "--target", *targets)
    assert built.returncode == 0, built.stdout + built.stderr


def emulate(
    *command: str | Path, processor: str = "max", root: Path = LIBRARIES, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A program for Arm; files that lie below `root` hide those of this machine."""
    return run(EMULATOR, "-cpu", processor, "-L", root, *command, **environment)
