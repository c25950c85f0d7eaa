"""The provider BitNetMetal on the emulated device: its library, sessions on it, and what ran where."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort
import pytest
import random_decoders
from package_logits import PackageLogits
from tiny_package import byte_tokenizer

from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.policy import Policy
from bitnet_onnx.runtime import Device
from bitnet_onnx.runtime._metal import add_provider

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "metal-provider"
LIBRARY = BUILT / "libbitnet_metal.so"
CLANG = shutil.which("clang++-19") or shutil.which("clang++")


class Counters(NamedTuple):
    """What the provider did in this process: custom_ops/metal/host/plan.h."""

    calls: int
    dispatches: int
    copied_in: int
    copied_out: int
    constants_mapped: int
    constants_copied: int
    cache_address: int
    work_bytes: int


@cache
def provider_library() -> Path:
    """The provider built for the emulated device, as CMake builds it for anybody."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the emulated device is built on Linux")
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=search)
    if CLANG is None or cmake is None:
        pytest.skip("the emulated device needs clang and cmake, and one of them is not installed")
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [cmake, "-S", ROOT, "-B", BUILT, f"-DCMAKE_CXX_COMPILER={CLANG}", "-DCMAKE_BUILD_TYPE=Release"]
        run([*configure, "-DBITNET_METAL_EMULATION=ON"])
        run([cmake, "--build", BUILT, "--parallel", "2", "--target", "bitnet_metal"])
    return LIBRARY


def run(command: list[str | Path]) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


#: Matrices so large that they are stored in the data file.
WIDE = replace(random_decoders.BASE, hidden_size=256, intermediate_size=512)


def decoder_package(directory: Path, spec: DecoderSpec, policy: Policy) -> Path:
    """A package of a random decoder, with files of a tokenizer, which the runtime wants to see."""
    package = random_decoders.write(directory / "package", spec, policy)
    byte_tokenizer().save(str(package / "tokenizer.json"))
    for other in ("tokenizer_config.json", "config.json"):
        if not (package / other).exists():
            (package / other).write_text("{}")
    return package


@cache
def metal_device() -> Device:
    """The emulated device with the operator library behind it."""
    return Device("metal", library_path(), provider_library())


def counters() -> Counters:
    numbers = (ctypes.c_uint64 * len(Counters._fields))()
    ctypes.CDLL(str(provider_library())).BitnetMetalCounters(numbers)
    return Counters(*numbers)


def provider_options(*, operators: bool = True) -> ort.SessionOptions:
    """Options of a session on the emulated device, which keeps account of what runs where."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    library = library_path()
    if operators and library is not None:
        options.register_custom_ops_library(str(library))
    add_provider(options, provider_library())
    return options


def placement(session: ort.InferenceSession) -> list[Counter[str]]:
    """Operators of each part that the device runs; everything else is on the CPU."""
    parts = session.get_provider_graph_assignment_info()
    return [Counter(node.op_type for node in part.get_nodes()) for part in parts if part.ep_name == "BitNetMetal"]


def on_the_cpu(session: ort.InferenceSession) -> Counter[str]:
    """Operators that the CPU runs."""
    parts = session.get_provider_graph_assignment_info()
    return Counter(node.op_type for part in parts if part.ep_name != "BitNetMetal" for node in part.get_nodes())


class ProviderLogits(PackageLogits):
    """Logits of a package on the emulated device."""

    def __init__(self, package: Path, *, operators: bool = True) -> None:
        self.session = ort.InferenceSession(package / "model.onnx", provider_options(operators=operators))
