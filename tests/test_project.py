"""Small promises of the repository about itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import bitnet_onnx

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


def test_the_version_is_told_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert bitnet_onnx.__version__ == project["version"]


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
