"""The library for 64-bit Arm Linux, built by its preset and run under qemu-user: its kernels on processors with and
without their instructions, and a whole model in a real ONNX Runtime."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from arm_build import EMULATOR, LIBRARIES, ROOT, build, emulate, run

import bitnet_onnx
from bitnet_onnx.runtime import SamplingParameters

# The processor that qemu plays, and the kernels that it should choose.
PROCESSORS = {"cortex-a53": "neon", "cortex-a76": "dotprod", "max": "i8mm"}

LINKED_APP = Path(__file__).with_name("linked_app")
TINY = ROOT / "model_zoo/packages/bitnet-tiny"
PROMPT = "In the beginning"
STEPS = 32
# ONNX Runtime reads these to see on what it runs; those of an x86 machine make it crash.
SYSTEM_FILES = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd atomics fphp asimdhp asimddp i8mm\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd0b\nCPU revision\t: 0\n",
    "sys/devices/system/cpu/online": "0\n",
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
}


@pytest.fixture(scope="module")
def arm_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, its kernels' tests and the program that decodes, for 64-bit Arm Linux."""
    folder = tmp_path_factory.mktemp("arm")
    build(folder, "bitnet_kernel_tests", "bitnet_ops", "bitnet_decode")
    return folder


@pytest.fixture(scope="module")
def kernel_tests(arm_build: Path) -> Path:
    """The C++ tests of the kernels as a program for 64-bit Arm."""
    return arm_build / "bitnet_kernel_tests"


@pytest.mark.parametrize("isa", ["neon", "dotprod", "i8mm"])
def test_kernels_equal_the_scalar_twin(no_library, kernel_tests: Path, isa: str) -> None:
    tested = emulate(kernel_tests, BITNET_ONNX_ISA=isa)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert f"{isa} kernels: 0 failures" in tested.stdout


@pytest.mark.parametrize(("processor", "chosen"), PROCESSORS.items())
def test_the_best_kernels_of_the_processor_are_chosen(
    no_library, kernel_tests: Path, processor: str, chosen: str
) -> None:
    listed = emulate(kernel_tests, "--choice", processor=processor, BITNET_ONNX_ISA="")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert listed.stdout.split() == ["chosen:", chosen]


def test_kernels_that_the_processor_cannot_run_are_refused(no_library, kernel_tests: Path) -> None:
    refused = emulate(kernel_tests, processor="cortex-a53", BITNET_ONNX_ISA="dotprod")
    assert refused.returncode != 0
    assert "BITNET_ONNX_ISA is 'dotprod', which this processor does not have" in refused.stdout


@pytest.fixture(scope="module")
def arm_root(arm_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the C library of Arm, the files that tell the processor and, in `ort.so`, ONNX Runtime."""
    root = tmp_path_factory.mktemp("arm_root")
    (root / "lib").symlink_to(LIBRARIES / "lib")
    for name, text in SYSTEM_FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "ascii")
    requirement = f"onnxruntime=={importlib.metadata.version('onnxruntime')}"
    # pip does not take an older tag for a newer platform.
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (27, 28, 34)]
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    fetched = subprocess.run([*command, f"--dest={root}", requirement], capture_output=True, text=True, timeout=300)
    if fetched.returncode != 0:
        pytest.skip(f"{requirement} for 64-bit Arm is not to be had: {fetched.stderr.strip()[-200:]}")
    (wheel,) = root.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if re.search(r"/libonnxruntime\.so\.[0-9.]+$", name))
        (root / "ort.so").write_bytes(archive.read(member))
    wheel.unlink()
    return root


@pytest.fixture(scope="module")
def expected() -> tuple[list[int], list[int]]:
    """The ids of the prompt, and what this machine's ONNX Runtime continues it with."""
    model = bitnet_onnx.load(TINY)
    answer = model.generate(PROMPT, SamplingParameters(max_new_tokens=STEPS, temperature=0.0))
    return model.encode(PROMPT), list(answer.ids)


def decode(program: Path, root: Path, operators: str | Path, ids: list[int]) -> list[int]:
    arguments = [root / "ort.so", TINY / "model.onnx", operators, str(STEPS), *map(str, ids)]
    ran = emulate(program, *arguments, root=root, ORT_DISABLE_TELEMETRY="1", BITNET_ONNX_ISA="")
    assert ran.returncode == 0, ran.stderr
    return [int(token) for token in ran.stdout.split()]


def test_the_arm_library_gives_the_tokens_of_this_machine(
    arm_build: Path, arm_root: Path, expected: tuple[list[int], list[int]]
) -> None:
    ids, tokens = expected
    assert len(tokens) == STEPS
    assert decode(arm_build / "bitnet_decode", arm_root, arm_build / "libbitnet_ops.so", ids) == tokens


def test_an_app_that_links_the_static_library(arm_build: Path, arm_root: Path, tmp_path: Path) -> None:
    """An app in C, built against the installed CMake package: the bits of the library that is loaded by path."""
    build(arm_build, "bitnet_ops", static=True)
    prefix, app = tmp_path / "prefix", tmp_path / "app"
    toolchain = ROOT / "custom_ops/toolchains/linux-aarch64.cmake"
    (arm_root / "libonnxruntime.so.1").symlink_to("ort.so")
    options = [f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", f"-Dbitnet_ops_ROOT={prefix}"]
    options += ["-DCMAKE_FIND_ROOT_PATH_MODE_PACKAGE=BOTH", f"-DONNXRUNTIME={arm_root / 'ort.so'}"]
    for command in (
        ["--install", arm_build, "--prefix", prefix],
        ["-S", LINKED_APP, "-B", app, *options],
        ["--build", app, "--target", "app_c"],
    ):
        ran = run("cmake", *command)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [path.name for path in (prefix / "lib").glob("libbitnet_ops*")] == ["libbitnet_ops.a"]
    lines = {}
    for operators in ("link", arm_build / "libbitnet_ops.so", "none"):
        environment = {"LD_LIBRARY_PATH": str(arm_root), "ORT_DISABLE_TELEMETRY": "1", "BITNET_ONNX_ISA": ""}
        variables = [part for name, value in environment.items() for part in ("-E", f"{name}={value}")]
        ran = run(
            EMULATOR, "-cpu", "max", "-L", arm_root, *variables, app / "app_c", TINY / "model.onnx", operators, "4"
        )
        assert ran.returncode == 0, ran.stderr
        lines[operators] = ran.stdout.splitlines()
    version, *linked = lines["link"]
    assert version.startswith(f"{bitnet_onnx.__version__} ")
    assert len(linked) == 4
    assert linked == lines[arm_build / "libbitnet_ops.so"]
    # The function bodies are an approximation: other bits say that the library was at work above.
    assert linked != lines["none"]
