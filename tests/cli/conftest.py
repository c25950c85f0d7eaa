"""The command line as a user meets it: arguments in, status, stdout and stderr out."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitnet_onnx.cli import main


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command in this process, with `stdin` as piped standard input."""

    def call(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return Result(caught.value.code, out, err)

    return call


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Runs a command that must end with status 2 and one line on stderr, and gives the line."""

    def call(*arguments: str | Path, stdin: bytes = b"") -> str:
        result = run(*arguments, stdin=stdin)
        assert result.status == 2, result
        assert result.out == ""
        (line,) = result.err.splitlines()
        assert line.startswith("error: ")
        return line

    return call


@pytest.fixture(scope="session")
def tiny_package(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bitnet_onnx.converters import convert

    package = tmp_path_factory.mktemp("cli") / "package"
    convert(tiny_checkpoint("untied_gqa"), package)
    return package
