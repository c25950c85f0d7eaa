"""Small promises of the repository about itself."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import bitnet_onnx
from bitnet_onnx.custom_ops import library_version

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")

FOLDERS = {
    ".ci",
    ".github",
    "benchmarks",
    "bitnet_onnx",
    "converters",
    "custom_ops",
    "docs",
    "examples",
    "model_zoo",
    "runtime",
    "tests",
    "tools",
}


VERSION_SOURCE = ROOT / "bitnet_onnx" / "__init__.py"


def test_the_version_stands_in_one_place() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert pyproject["project"]["dynamic"] == ["version"]
    assert pyproject["tool"]["scikit-build"]["metadata"]["version"]["input"] == "bitnet_onnx/__init__.py"
    assert bitnet_onnx.__version__ in VERSION_SOURCE.read_text("utf-8")
    assert bitnet_onnx.__version__ not in (ROOT / "CMakeLists.txt").read_text("utf-8")


def test_the_installed_package_and_its_library_have_that_version() -> None:
    assert importlib.metadata.version("bitnet-onnx") == bitnet_onnx.__version__
    library = library_version()
    if library is None:
        pytest.skip("no operator library: built without a compiler")
    assert library.partition(" ")[0] == bitnet_onnx.__version__


@pytest.mark.parametrize(
    ("version", "numbers"), [("3.14.15", ["3", "14", "15"]), ("2.0.0rc1", ["2", "0", "0"]), ("two", None)]
)
def test_cmake_reads_the_version_from_its_place(tmp_path: Path, version: str, numbers: list[str] | None) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    (tmp_path / "bitnet_onnx").mkdir()
    (tmp_path / "bitnet_onnx" / "__init__.py").write_text(f'__version__ = "{version}"\n', "utf-8")
    text = (ROOT / "CMakeLists.txt").read_text("utf-8")
    begin = text[: text.index("option(")]
    names = ["BITNET_OPS_VERSION", *(f"BITNET_OPS_VERSION_{part}" for part in ("MAJOR", "MINOR", "PATCH"))]
    shown = "".join(f'message(STATUS "is ${{{name}}}")\n' for name in names)
    (tmp_path / "CMakeLists.txt").write_text(begin + shown, "utf-8")
    run = subprocess.run(["cmake", "-S", tmp_path, "-B", tmp_path / "b"], capture_output=True, text=True, check=False)
    assert (run.returncode == 0) == (numbers is not None), run.stderr
    assert re.findall(r"^-- is (.*)$", run.stdout, re.MULTILINE) == ([version, *numbers] if numbers else [])
    assert numbers or "has no line like" in run.stderr


def test_the_changelog_has_a_heading_for_the_version() -> None:
    """What keepachangelog.com asks for: newest first, dated, and each group under one of six names."""
    lines = (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]"
    released = [re.fullmatch(r"## \[(\d+\.\d+\.\d+\S*)\] - \d{4}-\d\d-\d\d", line) for line in headings[1:]]
    assert all(released)
    versions = [match[1] for match in released if match]
    # A released version may be in the source until the next one is begun; an unreleased one has no heading yet.
    assert not versions or bitnet_onnx.__version__ == versions[0] or bitnet_onnx.__version__ not in versions
    groups = {line for line in lines if line.startswith("### ")}
    assert groups <= {f"### {name}" for name in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")}


def test_the_top_level_is_fixed() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.partition("/")[0] for line in tracked.splitlines() if "/" in line} <= FOLDERS


def test_every_target_is_explained() -> None:
    targets = re.findall(r"^\.PHONY: (\S+)$", MAKEFILE, re.MULTILINE)
    assert {"demo", "test", "lint", "parity", "wheel", "clean", "help"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:.* ## \S", MAKEFILE, re.MULTILINE), target


def test_help_is_the_default_target_and_lists_the_others() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # Called from `make test`, the outer make's variables would make this one print directories.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"^\.PHONY: (\S+)$", MAKEFILE, re.MULTILINE):
        assert f"make {target} " in shown


def test_the_papers_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        assert (ROOT / name).stat().st_size > 500, name


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_ci_runs_a_script_that_stops_at_the_first_failure() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text("utf-8")
