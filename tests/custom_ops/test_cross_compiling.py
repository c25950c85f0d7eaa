"""The presets for cross-compiling; tests/custom_ops/test_arm.py runs what one of them builds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from arm_build import ROOT, run


@pytest.fixture(autouse=True)
def _needs_cmake(no_library) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")


def test_cmake_reads_the_presets() -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text("utf-8"))
    names = {preset["name"] for preset in presets["configurePresets"] if not preset.get("hidden")}
    assert {"linux-aarch64", "android-arm64", "ios-arm64", "macos-arm64", "windows-x64"} <= names
    # Every preset can be built, and CMake, which knows nothing of other systems' presets, takes the file.
    assert {preset["configurePreset"] for preset in presets["buildPresets"]} == names
    listed = run("cmake", "--list-presets")
    assert listed.returncode == 0, listed.stderr
    shown = set(re.findall(r'^  "(\S+)"', listed.stdout, re.MULTILINE))
    assert {"android-arm64", "zig-windows-x64"} <= shown <= names


@pytest.mark.parametrize("preset", ["android-arm64", "zig-linux-aarch64"])
def test_a_missing_tool_chain_is_told(preset: str, tmp_path: Path) -> None:
    environment = {"ANDROID_NDK_HOME": "/nowhere", "BITNET_ZIG": "", "PATH": str(tmp_path)}
    told = run(str(shutil.which("cmake")), "--preset", preset, "-B", tmp_path / "build", **environment)
    assert told.returncode != 0
    expected = {"android-arm64": "/nowhere/build/cmake/android.toolchain.cmake", "zig-linux-aarch64": "No zig found"}
    assert expected[preset] in told.stderr
