"""The program of examples/cpp, built against the installed wheel of onnxruntime and the headers of a release."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import onnxruntime
import pytest
import runtime_headers

from bitnet_onnx.custom_ops import library_path

if sys.platform != "win32":
    import fcntl

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples/cpp"
BUILT = ROOT / "build/examples-cpp"
COMPILER = shutil.which(os.environ.get("CXX") or "c++")
#: The title of blocks that the tests of the documentation leave out, and those of the example run.
NEEDS = "Needs ONNX Runtime for C++"
#: What the commands that build begin with.
_BUILD = ("bitnet-onnx ops --copy", "cmake ")
_BUILD_S = 600


def run(*command: object, cwd: Path | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A program without input, its output as text."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
    )


def tool(name: str) -> str:
    """A program of this environment or of the system; without it the test is skipped."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def link(path: Path, target: Path) -> None:
    """Makes or replaces a symbolic link."""
    # A program that starts just now may need the one that is there.
    if not path.is_symlink() or path.readlink() != target:
        path.unlink(missing_ok=True)
        path.symlink_to(target)


def runtime_root(folder: Path) -> Path:
    """Fills a folder as an unpacked release archive is, `include` and `lib`, with links."""
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.*[0-9]*")
    names = ["libonnxruntime.dylib"] if sys.platform == "darwin" else ["libonnxruntime.so", "libonnxruntime.so.1"]
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    for name in names:
        link(folder / "lib" / name, library)
    link(folder / "include", runtime_headers.headers())
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time builds."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def commands(page: Path, title: str) -> list[str]:
    """What a page of the documentation shows in its `console` blocks with this title."""
    found: list[str] = []
    for block in re.findall(
        rf'^```console title="{re.escape(title)}"$(.*?)^```$', page.read_text("utf-8"), re.M | re.S
    ):
        found += re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.M)
    return found


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """A command of a page, in a folder that looks like a clone, `bitnet-onnx` and `$ONNXRUNTIME_ROOT` being there."""
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "ONNXRUNTIME_ROOT": str(BUILT / "onnxruntime"),
        "CXXFLAGS": "-Werror",
        "CMAKE_BUILD_PARALLEL_LEVEL": "2",
    }
    return subprocess.run(
        ["bash", "-c", command],
        cwd=BUILT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=_BUILD_S,
    )


@cache
def program() -> Path:
    """`bitnet_generate`, built once for all tests by the commands of its README."""
    if sys.platform == "win32":
        pytest.skip("the wheel for Windows has no import library to link with")
    if COMPILER is None:
        pytest.skip("no C++ compiler is installed")
    if library_path() is None:
        pytest.skip("the operator library is not built: no C++17 compiler when bitnet-onnx was installed")
    tool("cmake")
    with _alone(BUILT):
        for name in ("examples", "model_zoo"):
            link(BUILT / name, ROOT / name)
        runtime_root(BUILT / "onnxruntime")
        copy, *build = [command for command in commands(SOURCE / "README.md", NEEDS) if command.startswith(_BUILD)]
        assert len(build) == 2
        # Of another build, perhaps.
        copy += " --overwrite"
        for command in (copy, *build):
            done = shell(command)
            assert done.returncode == 0, command + "\n" + done.stdout + done.stderr
    return BUILT / "build/cpp/bitnet_generate"


def taken_library() -> Path:
    """The operator library that the program takes where it is told none."""
    library = library_path()
    assert library is not None
    return BUILT / "ops" / library.name
