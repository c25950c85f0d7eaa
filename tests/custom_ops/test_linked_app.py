"""Applications in C and C++ that find the operator library as their builds do, against ONNX Runtime."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from runtime_headers import headers

import bitnet_onnx
from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.custom_ops.sdk import copy_sdk

ROOT = Path(__file__).parents[2]
APP = Path(__file__).with_name("linked_app")
MODEL = ROOT / "model_zoo" / "packages" / "bitnet-tiny" / "model.onnx"
STEPS = 8
VERSION = bitnet_onnx.__version__
NUMBERS = tuple(map(int, re.findall(r"\d+", VERSION)[:3]))
NUMBERS_TEXT = ".".join(map(str, NUMBERS))
#: The kernels of newer processors give the same bits and only take time to compile.
FEWER_KERNELS = ("-DBITNET_COMPILES_AVX512=OFF", "-DBITNET_COMPILES_AVXVNNI=OFF")

pytestmark = pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the programs are built as on Unix")


def run(*command: str | Path, **environment: str) -> str:
    ended = subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def tool(name: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(scope="module")
def onnxruntime_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the Python wheel, under the name that programs look for."""
    found = sorted(Path(ort.__file__).parent.glob("capi/libonnxruntime.*"))
    if not found:
        pytest.skip("the wheel of onnxruntime holds no libonnxruntime to link")
    folder = tmp_path_factory.mktemp("onnxruntime")
    name = "libonnxruntime.so.1" if sys.platform == "linux" else found[0].name
    (folder / name).symlink_to(found[0])
    return folder / name


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """What plain Python with the library gives: token and bits of its logit, line by line."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    return greedy(ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"]))


def greedy(session: ort.InferenceSession) -> list[str]:
    past = {i.name: np.zeros((1, 2, 0, 64), np.float32) for i in session.get_inputs() if i.name.startswith("past")}
    ids, lines = [5, 6, 7], []
    for _ in range(STEPS):
        tokens = np.array([ids], np.int64)
        (logits,) = session.run(["logits"], {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **past})
        ids.append(int(logits[0, -1].argmax()))
        lines.append(f"{ids[-1]} {logits[0, -1].max().view(np.uint32):08x}")
    return lines


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An install without Python, moved after it was made."""
    tool("c++")
    cmake, folder = tool("cmake"), tmp_path_factory.mktemp("install")
    run(cmake, "-S", ROOT, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release", *FEWER_KERNELS)
    run(cmake, "--build", folder / "build", "--parallel", "2", "--target", "bitnet_ops")
    run(cmake, "--install", folder / "build", "--prefix", folder / "made")
    (folder / "made").rename(folder / "moved here")
    shutil.rmtree(folder / "build")
    return folder / "moved here"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "bitnet ops"
    copy_sdk(folder)
    return folder


def check(program: Path, library: Path, expected: list[str], **environment: str) -> None:
    """Runs a program that is linked with the library, in all the ways that register it, and without."""
    version, *lines = run(program, MODEL, "link", str(STEPS), **environment).splitlines()
    major, minor, patch = NUMBERS
    assert version == f"{VERSION} 1 1 {major * 1_000_000 + minor * 1000 + patch}"
    assert lines == expected
    assert run(program, MODEL, library, str(STEPS), **environment).splitlines() == expected
    bodies = run(program, MODEL, "none", str(STEPS), **environment).splitlines()
    assert len(bodies) == STEPS
    # The function bodies are an approximation: other bits say that the library was at work above.
    assert bodies != expected


@pytest.fixture(params=["prefix", "copied"])
def kit(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def test_with_cmake(kit: Path, onnxruntime_library: Path, expected: list[str], tmp_path: Path) -> None:
    cmake = tool("cmake")
    tool("cc")
    options = [f"-DWANTED={NUMBERS_TEXT}", f"-DCMAKE_PREFIX_PATH={kit}", f"-DONNXRUNTIME={onnxruntime_library}"]
    run(cmake, "-S", APP, "-B", tmp_path, *options)
    run(cmake, "--build", tmp_path)
    library = Path((tmp_path / "library.txt").read_text())
    assert library.is_relative_to(kit)
    assert (tmp_path / "version.txt").read_text() == NUMBERS_TEXT
    for program in ("app_c", "app_cc"):
        check(tmp_path / program, library, expected)


def test_with_pkg_config(kit: Path, onnxruntime_library: Path, expected: list[str], tmp_path: Path) -> None:
    pkg_config, compiler = tool("pkg-config"), tool("cc")
    where = {"PKG_CONFIG_PATH": os.pathsep.join(str(file.parent) for file in kit.rglob("bitnet_ops.pc"))}
    assert run(pkg_config, "--modversion", "bitnet_ops", **where) == f"{NUMBERS_TEXT}\n"
    flags = shlex.split(run(pkg_config, "--cflags", "--libs", "bitnet_ops", **where))
    library = Path(*shlex.split(run(pkg_config, "--variable=library", "bitnet_ops", **where)))
    strict = ["-std=c89", "-pedantic", "-Wall", "-Wextra", "-Wstrict-prototypes", "-Werror"]
    # -pedantic: pointers to functions and to data are not the same thing for C89, and the table holds functions only.
    run(compiler, *strict, APP / "app.c", *flags, onnxruntime_library, "-o", tmp_path / "app")
    folders = os.pathsep.join([str(library.parent), str(onnxruntime_library.parent)])
    paths = {"LD_LIBRARY_PATH": folders, "DYLD_LIBRARY_PATH": folders}
    check(tmp_path / "app", library, expected, **paths)


def test_a_package_of_another_major_version_is_not_taken(copied: Path, tmp_path: Path) -> None:
    cmake = tool("cmake")
    project = "cmake_minimum_required(VERSION 3.20)\nproject(app LANGUAGES NONE)\nfind_package(bitnet_ops {} CONFIG)\n"
    major, minor, _ = NUMBERS
    cases = {f"{major}.{minor}": 1, f"{major}.0.0": 1, f"{major}.{minor + 1}": 0, f"{major + 1}.0": 0}
    for wanted, found in cases.items():
        source = tmp_path / wanted
        source.mkdir()
        text = project.format(wanted) + "message(STATUS found=${bitnet_ops_FOUND})\n"
        (source / "CMakeLists.txt").write_text(text)
        out = run(cmake, "-S", source, "-B", source / "build", f"-DCMAKE_PREFIX_PATH={copied}")
        assert f"found={found}\n" in out


def test_a_folder_without_its_library_is_not_found(copied: Path, tmp_path: Path) -> None:
    cmake = tool("cmake")
    folder = shutil.copytree(copied, tmp_path / "incomplete")
    next(folder.glob("*bitnet_ops.so*" if sys.platform == "linux" else "*.dylib")).unlink()
    text = (
        "cmake_minimum_required(VERSION 3.20)\nproject(app LANGUAGES NONE)\nfind_package(bitnet_ops CONFIG REQUIRED)\n"
    )
    (tmp_path / "CMakeLists.txt").write_text(text)
    ended = subprocess.run(
        [cmake, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={folder}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode != 0
    assert "is missing: copy or install bitnet_ops as a whole again" in " ".join(ended.stderr.split())


def test_the_official_header_and_ours_agree(copied: Path, tmp_path: Path) -> None:
    folder = headers()
    pair = ['#include "onnxruntime_c_api.h"', '#include "bitnet_ops.h"']
    use = "OrtStatus* add(OrtSessionOptions* o) { return RegisterCustomOps(o, OrtGetApiBase()); }\n"
    for order in (pair, pair[::-1]):
        for name in ("use.c", "use.cc"):
            (tmp_path / name).write_text("\n".join([*order, "OrtStatus* add(OrtSessionOptions* o);", use]))
            run(
                tool("c++" if name.endswith("cc") else "cc"),
                "-fsyntax-only",
                f"-I{folder}",
                f"-I{copied}",
                tmp_path / name,
            )
