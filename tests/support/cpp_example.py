"""The program of examples/cpp, built against the installed wheel of onnxruntime and the headers of a release."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import onnxruntime
import pytest

from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.model_zoo import cache_root

if sys.platform != "win32":
    import fcntl

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples/cpp"
BUILT = ROOT / "build/examples-cpp"
COMPILER = shutil.which(os.environ.get("CXX") or "c++")
#: The wheel has the library and no headers; this package for Unity has those of version 29 of the interface.
_HEADERS = "com.github.asus4.onnxruntime@0.4.9"
_HEADERS_SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
_HEADERS_FOLDER = "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers/"
_HEADERS_BYTES = 8 * 2**20
_FETCH_S = 300
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


def headers() -> Path:
    """A folder with ONNX Runtime's headers: `$BITNET_ONNX_ORT_HEADERS`, the system's, or fetched once into a cache."""
    installed = Path(os.environ.get("BITNET_ONNX_ORT_HEADERS", "/usr/include/onnxruntime"))
    if (installed / "onnxruntime_cxx_api.h").is_file():
        return installed
    folder = cache_root() / "onnxruntime-headers" / "29"
    if folder.is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no headers of ONNX Runtime: set BITNET_ONNX_ORT_HEADERS, or install npm, which fetches them")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        try:
            fetched = run(npm, "pack", _HEADERS, "--silent", "--cache", scratch, cwd=scratch, timeout=_FETCH_S)
        except subprocess.TimeoutExpired:
            pytest.skip(f"no headers of ONNX Runtime: npm has not fetched {_HEADERS} in {_FETCH_S} s")
        if fetched.returncode != 0:
            pytest.skip(f"no headers of ONNX Runtime: npm cannot fetch {_HEADERS}: {fetched.stderr.strip():.200}")
        archive = scratch / fetched.stdout.split()[-1]
        with archive.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == _HEADERS_SHA256, f"{_HEADERS} has changed"
        (scratch / "29").mkdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name.startswith(_HEADERS_FOLDER) and member.isfile() and member.size < _HEADERS_BYTES:
                    content = tar.extractfile(member)
                    assert content is not None
                    (scratch / "29" / Path(member.name).name).write_bytes(content.read())
        try:
            (scratch / "29").rename(folder)
        except OSError:  # another process was faster
            assert folder.is_dir()
    return folder


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
    link(folder / "include", headers())
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
