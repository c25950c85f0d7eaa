"""The emulated device."""

from __future__ import annotations

import sys

import pytest
from metal_emulation import CLANG, Emulation, build
from shared import alone


@pytest.fixture(scope="session")
def clang() -> str:
    """Path of clang."""
    if sys.platform == "win32":
        pytest.skip("the emulation is built with the options of Linux and macOS")
    if CLANG is None:
        pytest.skip("clang++-19 or clang++ is not installed: the shaders cannot be run here")
    return CLANG


@pytest.fixture(scope="session")
def opened(clang: str, tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    """The device with the shaders as they are; whatever else is built goes on from their objects."""
    with alone(tmp_path_factory, "metal-emulation"):
        return Emulation.open(build())


@pytest.fixture(params=[0, 1], ids=["seed 0", "seed 1"])
def device(opened: Emulation, request: pytest.FixtureRequest) -> Emulation:
    """The device, with two orders of threads."""
    opened.seed(request.param)
    return opened
