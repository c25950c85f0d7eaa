"""Faults that are put into the shaders' text: each must be caught, as it is said in metal_mutations.py."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from metal_emulation import SANITIZER_STATUS, Emulation, MetalError, build, sanitizer_environment
from metal_mutations import FAULTS, shows

Libraries = Callable[[str], Path]


@pytest.fixture(scope="module")
def libraries(opened: Emulation) -> Libraries:
    """The library with one fault; all are built together."""
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    builds = {
        name: pool.submit(build, {fault.shader: fault.edit}, bool(fault.sanitizer)) for name, fault in FAULTS.items()
    }
    pool.shutdown(wait=False)
    return lambda name: builds[name].result()


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not fault.sanitizer])
def test_caught(libraries: Libraries, opened: Emulation, name: str) -> None:
    fault = FAULTS[name]
    device = Emulation.open(libraries(name))
    with np.errstate(invalid="ignore", over="ignore"):
        assert not shows(opened, fault.case), "the case fails without the fault"
        if fault.error:
            with pytest.raises(MetalError, match=fault.error):
                shows(device, fault.case)
        else:
            assert shows(device, fault.case)


def sanitized(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module of tests/support in a process with AddressSanitizer."""
    environment = sanitizer_environment()
    if environment is None:
        pytest.skip("clang has no AddressSanitizer: install libclang-rt-19-dev")
    support = Path(__file__).parents[1] / "support"
    return subprocess.run(
        [sys.executable, "-P", str(support / script), *arguments],
        env={**os.environ, **environment, "PYTHONPATH": str(support)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.sanitizer])
def test_caught_by_the_sanitizer(libraries: Libraries, name: str) -> None:
    result = sanitized("metal_mutations.py", name, str(libraries(name)))
    assert result.returncode == SANITIZER_STATUS, result.stderr
    assert FAULTS[name].sanitizer in result.stderr


def test_the_sanitizer_finds_nothing(libraries: Libraries) -> None:
    result = sanitized("metal_cases.py", str(build(sanitize=True)))
    assert (result.returncode, result.stdout) == (0, "all cases pass\n"), result.stderr
