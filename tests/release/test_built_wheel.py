"""What `make wheel` makes: its files, its tag, and the commands in clean environments of several Pythons."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import bitnet_onnx
from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.runtime import SamplingParameters

ROOT = Path(__file__).parents[2]
VERSION = bitnet_onnx.__version__
PYTHONS = ["3.11", "3.12", "3.13"]
PROMPT = "In the beginning"
TOKENS = 16
#: What applications build with, made by CMake; Windows has an import library besides.
SDK = "bitnet_onnx/custom_ops/sdk/"
SDK_FILES = {"LICENSE", "bitnet_ops-config-version.cmake", "bitnet_ops-config.cmake", "bitnet_ops.h", "bitnet_ops.pc"}
LIBRARIES = {"linux": ("lib", ".so"), "darwin": ("lib", ".dylib"), "win32": ("", ".dll")}


def run(*command: str | Path, cwd: Path) -> str:
    """What a program prints, started in a folder outside the repository and without its paths."""
    ours = ("PYTHON", "VIRTUAL_ENV", "BITNET_ONNX_OPS", "BITNET_ONNX_ISA", "COV_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    ran = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | {"PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=1200,
        check=False,
    )
    if "No matching distribution found" in ran.stdout + ran.stderr and os.environ.get("CI") != "true":
        pytest.skip(f"the package index is not to be had: {ran.stderr.strip()[-200:]}")
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The source distribution, the wheel, and what the tool said."""
    if library_path() is None:
        pytest.skip("the operator library is not built: no C++17 compiler when bitnet-onnx was installed")
    folder = tmp_path_factory.mktemp("dist")
    said = run(sys.executable, "-P", ROOT / "tools/wheel.py", folder, cwd=folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel, said


@pytest.fixture(scope="module")
def wheel(made: tuple[Path, Path, str]) -> Path:
    return made[1]


def packaged_sources() -> set[str]:
    """Files that the wheel has to carry: what git knows of the packages, less what pyproject.toml leaves out."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["scikit-build"]["wheel"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = set()
    for package, source in settings["packages"].items():
        for line in tracked.splitlines():
            name = f"{package}{line.removeprefix(source)}"
            kept = not any(fnmatch.fnmatch(name, pattern.replace("**/*", "*")) for pattern in settings["exclude"])
            if line.startswith(f"{source}/") and kept:
                names.add(name)
    return names


def test_the_wheel_out_of_the_source_distribution_lacks_nothing(wheel: Path) -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: nobody knows what belongs to the packages")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    prefix, suffix = LIBRARIES[sys.platform]
    built = {name for name in held if name.endswith(suffix)}
    stems = {name.removeprefix(f"bitnet_onnx/custom_ops/{prefix}").removesuffix(suffix) for name in built}
    assert {"bitnet_ops", "bitnet_roofline"} <= stems <= {"bitnet_ops", "bitnet_roofline", "bitnet_metal"}
    info = {name for name in held if name.startswith(f"bitnet_onnx-{VERSION}.dist-info/")}
    assert f"bitnet_onnx-{VERSION}.dist-info/licenses/LICENSE" in info
    sdk = {name for name in held if name.startswith(SDK)}
    assert {name.removeprefix(SDK) for name in sdk} >= SDK_FILES
    assert held - built - info - sdk == packaged_sources()


def test_the_source_distribution_holds_the_sources_of_the_library(made: tuple[Path, Path, str]) -> None:
    with tarfile.open(made[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "CMakePresets.json", "LICENSE", "custom_ops/ort/register.cc", "docs/operator.md"} <= names
    assert not any(name.endswith((".so", ".whl", ".pyc")) or name.startswith("build/") for name in names)


def test_any_python_3_takes_the_wheel_and_old_systems_too(made: tuple[Path, Path, str]) -> None:
    _, wheel, said = made
    assert said.splitlines()[-1].endswith(wheel.name)
    python, abi, platforms = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none")
    if sys.platform != "linux":
        assert f"{wheel.name} stays as it is built" in said
        return
    assert re.search(r'consistent with the following platform tag: "manylinux_', said)
    minors = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", platforms)]
    # onnxruntime's own need 2.27 or 2.28.
    assert minors
    assert min(minors) <= 28


def python_of(version: str) -> str | None:
    """A Python of this version: the running one, one on PATH, or one that pyenv has installed."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [sys.executable, shutil.which(f"python{version}"), *map(str, pyenv.glob(f"{version}.*/bin/python3"))]
    probe = "import sys, venv; print(*sys.version_info[:2], sep='.')"
    for candidate in filter(None, candidates):
        # A shim of pyenv exists for versions that are not chosen, and fails.
        asked = subprocess.run([candidate, "-P", "-c", probe], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.strip() == version:
            return candidate
    return None


def tried(python: str, wheel: Path, folder: Path) -> dict[str, str]:
    """What the commands print in a new environment of `python` that holds the wheel and what it needs."""
    run(python, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-P", "-m", "pip", "--python", scripts / "python", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-compile", "--only-binary=:all:", wheel, cwd=folder)
    command = scripts / "bitnet-onnx"
    infer = ["infer", "bitnet-tiny", "--prompt", PROMPT, "--max-new-tokens", str(TOKENS)]
    return {
        "version": run(command, "--version", cwd=folder),
        "ops": run(command, "ops", cwd=folder),
        "infer": run(command, *infer, cwd=folder),
        "zoo": run(command, "zoo", "list", cwd=folder),
    }


@pytest.fixture(scope="module")
def printed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, str] | None]]:
    """What each version printed, by version; None for one that is not here."""
    folder = tmp_path_factory.mktemp("clean")
    found = {version: python for version in PYTHONS if (python := python_of(version)) is not None}
    with removed(folder), ThreadPoolExecutor(2) as pool:
        waiting = {version: pool.submit(tried, python, wheel, folder / version) for version, python in found.items()}
        yield {version: waiting[version].result() if version in found else None for version in PYTHONS}


@contextmanager
def removed(folder: Path) -> Iterator[None]:
    """Environments are large: they go with the tests."""
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def answer() -> str:
    model = bitnet_onnx.load(ROOT / "model_zoo/packages/bitnet-tiny")
    return model.generate(PROMPT, SamplingParameters(max_new_tokens=TOKENS, temperature=0.0)).text


@pytest.mark.parametrize("version", PYTHONS)
def test_it_works_in_a_clean_environment(
    version: str, printed: dict[str, dict[str, str] | None], answer: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shown = printed[version]
    if shown is None:
        pytest.skip(f"no Python {version} here: neither python{version} on PATH nor one of pyenv")
    assert shown["version"] == f"bitnet-onnx, version {VERSION}\n"
    library = re.search(r"^library: (.*)$", shown["ops"], re.MULTILINE)
    assert library is not None
    # The library of the environment, not of the checkout.
    assert f"clean0{os.sep}{version}{os.sep}" in library[1]
    assert f"version: {VERSION} (" in shown["ops"]
    assert answer
    assert answer in shown["infer"]
    assert "bitnet-tiny" in shown["zoo"]
