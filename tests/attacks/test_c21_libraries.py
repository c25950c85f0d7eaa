"""Class 21: operator libraries of other versions and platforms, missing ones, and files that are none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bounded_command import Ended, run_bounded
from foreign_libraries import AARCH64, X86_64, compiled, elf, mach, pe

from bitnet_onnx.cli import main
from bitnet_onnx.custom_ops._binary import this_platform

PACKAGE = Path(__file__).parents[2] / "model_zoo" / "packages" / "bitnet-tiny"
VARIABLE = "BITNET_ONNX_OPS_LIBRARY"


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command with the library that is named, which must end with status 2 and one line, and gives the line."""
    folder = tmp_path / "empty"
    folder.mkdir()

    def call(library: Path, *arguments: str | Path) -> str:
        monkeypatch.setenv(VARIABLE, str(library))
        if arguments[0] == "ops":
            # It remembers nothing, and so needs no process of its own.
            with pytest.raises(SystemExit) as caught:
                main([str(argument) for argument in arguments])
            ended = Ended(int(caught.value.code or 0), *capfd.readouterr())
        else:
            ended = run_bounded(*arguments, folder=folder)
        assert (ended.status, ended.out) == (2, ""), ended
        (line,) = ended.err.splitlines()
        assert line.startswith("error: ")
        assert VARIABLE in line
        assert list(folder.iterdir()) == []
        return line

    return call


def infer(package: Path = PACKAGE) -> tuple[str | Path, ...]:
    return "infer", package, "--prompt", "In the beginning", "--max-new-tokens", "1"


def test_a_library_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    assert "which is not a file: correct or unset it" in refused(tmp_path / "absent.so", *infer())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (elf(AARCH64 if "x86-64" in this_platform() else X86_64), "is for Linux on "),
        (mach(system=2), "is for iOS on aarch64, and this is "),
        (pe(0x14C), "is for Windows on x86 with 32 bits, and this is "),
        (b"<html>404</html>", "is not a shared library: it begins with b'<htm'"),
    ],
    ids=["elf", "mach", "pe", "text"],
)
def test_a_library_of_another_platform(refused: Refused, tmp_path: Path, content: bytes, words: str) -> None:
    library = tmp_path / "libbitnet_ops.so"
    library.write_bytes(content)
    line = refused(library, "ops", "--path")
    assert words in line
    assert "correct or unset the variable" in line


def test_a_library_that_is_cut_short(refused: Refused, operator_library: Path, tmp_path: Path) -> None:
    """Its loader would die of it."""
    library = shutil.copy(operator_library, tmp_path / operator_library.name)
    os.truncate(library, operator_library.stat().st_size // 2)
    assert "is cut short" in refused(library, *infer())


@pytest.fixture
def compiler() -> str:
    if os.name == "nt":
        pytest.skip("the libraries of the test are built with the options of GCC and Clang")
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        pytest.skip("no C compiler is installed")
    return found


@pytest.mark.parametrize(
    ("oldest", "newest", "runs"), [(0, 0, "version 0"), (2, 2, "version 2"), (2, 5, "versions 2 to 5")]
)
def test_a_library_of_another_version(
    refused: Refused, compiler: str, tmp_path: Path, oldest: int, newest: int, runs: str
) -> None:
    library = compiled(tmp_path, compiler, oldest=oldest, newest=newest)
    line = refused(library, *infer())
    assert f"{PACKAGE} needs version 1 of the operators, and {library} (bitnet_ops 9.1.0) runs {runs}: " in line


@pytest.mark.parametrize("missing", ["RegisterCustomOps", "BitnetOpsOperatorVersion"])
def test_another_library_altogether(refused: Refused, compiler: str, tmp_path: Path, missing: str) -> None:
    line = refused(compiled(tmp_path, compiler, without=missing), "ops", "--path")
    assert f"exports no {missing}: it is not the operator library of bitnet-onnx" in line
