"""The x86 kernels on processors that this machine need not be: their intrinsics emulated by SIMDe, CPUID by ourselves.

Emulation shows that the results are right, and nothing about speed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EMULATED = Path(__file__).with_name("emulated_x86")
KERNELS = ROOT / "custom_ops" / "kernels"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

#: Of other processors, and the CPUID that the emulation stands in for.
LEFT_OUT = re.compile(r"neon|dotprod|i8mm|x86_cpu")
ISAS = ["avx512vnni", "avxvnni", "avx512", "avx2"]
# SIMDe and optimization beyond this make the compiler slower than the tests.
OPTIONS = ["-std=c++17", "-O1", "-w", "-Wno-psabi", "-ffp-contract=off", "-fno-math-errno"]

OLDEST = "osxsave avx xmm ymm"
HASWELL = f"{OLDEST} avx2"
ZMM = "opmask zmm zmm16"
SKYLAKE_SERVER = f"{HASWELL} {ZMM} avx512f avx512dq avx512cd avx512bw avx512vl"
ICE_LAKE = f"{SKYLAKE_SERVER} avx512_vnni"
SAPPHIRE_RAPIDS = f"{ICE_LAKE} avx_vnni"
ALDER_LAKE = f"{HASWELL} avx_vnni"

# What a processor and its operating system say, and the kernels that should be chosen.
PROCESSORS = {
    "sandy-bridge": (OLDEST, "scalar"),
    "avx2-without-system": ("avx avx2", "scalar"),
    "avx2-without-ymm": ("osxsave avx xmm avx2", "scalar"),
    "old-cpuid": (f"{HASWELL} no-leaf-7", "scalar"),
    "haswell": (HASWELL, "avx2"),
    "knights-landing": (f"{HASWELL} {ZMM} avx512f avx512cd", "avx2"),
    "skylake-server": (SKYLAKE_SERVER, "avx512"),
    "skylake-server-without-zmm": (SKYLAKE_SERVER.replace(ZMM, ""), "avx2"),
    "ice-lake": (ICE_LAKE, "avx512vnni"),
    "ice-lake-without-zmm": (ICE_LAKE.replace(ZMM, ""), "avx2"),
    "alder-lake": (ALDER_LAKE, "avxvnni"),
    "alder-lake-without-subleaf": (f"{ALDER_LAKE} no-subleaf-1", "avx2"),
    "sapphire-rapids": (SAPPHIRE_RAPIDS, "avx512vnni"),
    "sapphire-rapids-without-zmm": (SAPPHIRE_RAPIDS.replace(ZMM, ""), "avxvnni"),
}


def run(*command: str | Path, source: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        input=source,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def kernel_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ tests of the kernels as a program that has all of `ISAS` on any machine."""
    if COMPILER is None or sys.platform == "win32":
        pytest.skip("no compiler with the options of GCC and Clang is installed")
    probe = run(COMPILER, "-x", "c++", "-fsyntax-only", "-", source="#include <simde/x86/avx512/dpbusd.h>\n")
    if probe.returncode != 0:
        pytest.skip("SIMDe's headers are not installed: Debian's package is libsimde-dev")
    build = tmp_path_factory.mktemp("emulated_x86")
    sources = [path for path in sorted(KERNELS.glob("*.cc")) if not LEFT_OUT.search(path.stem)]
    sources += [ROOT / "custom_ops" / "tests" / f"{name}_tests.cc" for name in ("float", "kernel")]
    sources += [EMULATED / "emulated_cpu.cc"]
    # The folder of the emulation comes first: its immintrin.h takes the place of the compiler's.
    options = [*OPTIONS, f"-I{EMULATED}", f"-I{ROOT / 'custom_ops'}", *(f"-DBITNET_HAVE_{isa.upper()}" for isa in ISAS)]

    def compiled(source: Path) -> Path:
        made = build / f"{source.stem}.o"
        result = run(str(COMPILER), *options, "-c", source, "-o", made)
        assert result.returncode == 0, result.stderr
        return made

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compiled, sources))
    linked = run(COMPILER, *objects, "-o", build / "kernel_tests")
    assert linked.returncode == 0, linked.stderr
    return build / "kernel_tests"


@pytest.mark.parametrize("isa", ISAS)
def test_emulated_kernels_equal_the_scalar_twin(no_library, kernel_tests: Path, isa: str) -> None:
    tested = run(kernel_tests, EMULATED_CPU=SAPPHIRE_RAPIDS, BITNET_ONNX_ISA=isa)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert f"{isa} kernels: 0 failures" in tested.stdout


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_best_kernels_are_chosen(no_library, kernel_tests: Path, processor: str) -> None:
    features, chosen = PROCESSORS[processor]
    listed = run(kernel_tests, "--choice", EMULATED_CPU=features, BITNET_ONNX_ISA="")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert listed.stdout.split() == ["chosen:", chosen]


def test_kernels_that_the_processor_lacks_are_refused(no_library, kernel_tests: Path) -> None:
    refused = run(kernel_tests, "--choice", EMULATED_CPU=ALDER_LAKE, BITNET_ONNX_ISA="avx512vnni")
    assert refused.returncode != 0
    assert "BITNET_ONNX_ISA is 'avx512vnni', which this processor does not have" in refused.stdout
