"""What all commands share: help, errors, interrupts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bitnet_onnx
from bitnet_onnx.cli import main

COMMANDS = ["convert", "inspect", "infer", "zoo", "benchmark", "ops"]


@pytest.mark.parametrize("arguments", [[], *[[name] for name in COMMANDS], ["zoo", "list"], ["zoo", "pull"]])
def test_help(run, arguments: list[str]) -> None:
    result = run(*arguments, "--help")
    assert result.status == 0
    assert result.out.startswith(f"Usage: {' '.join(['bitnet-onnx', *arguments])}")
    assert result.err == ""


def test_the_list_of_commands_is_complete(run) -> None:
    out = run("-h").out
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["zoo"]])
def test_without_a_command_the_help_is_shown(run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert result.err.startswith("Usage: bitnet-onnx")
    assert len(result.err.splitlines()) > 5


def test_the_version(run) -> None:
    assert run("--version").out == f"bitnet-onnx, version {bitnet_onnx.__version__}\n"


def test_unknown_commands_and_options(refused) -> None:
    assert "No such command 'covert'" in refused("covert")
    assert "No such option" in refused("convert", "--weigths", "int4")
    assert "Missing argument 'SOURCE'" in refused("convert")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (MemoryError(), 1, "error: out of memory: close other programs, or choose a smaller model"),
        (PermissionError(13, "Permission denied", "/a/b"), 1, "error: /a/b: Permission denied"),
        (OSError("strange"), 1, "error: strange"),
        (
            bitnet_onnx.errors.BitnetOnnxError("two\nlines \x1b[31m[/x] :smile:"),
            1,
            "error: two lines \\x1b[31m[/x] :smile:",
        ),
    ],
)
def test_errors_become_one_line(
    run, monkeypatch, tmp_path: Path, error: BaseException, status: int, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("bitnet_onnx.cli.inspect.inspect", fail)
    result = run("inspect", tmp_path)
    # After Ctrl-C the terminal's cursor stands behind ^C: click ends that line first.
    assert (result.status, result.out, result.err.lstrip("\n")) == (status, "", f"{message}\n")


def test_a_reader_that_went_away_is_no_error(monkeypatch, tmp_path: Path, capfd) -> None:
    def fail(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("bitnet_onnx.cli.inspect.inspect", fail)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back at the end
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tmp_path)])
    assert caught.value.code == 1
    assert capfd.readouterr() == ("", "")


def test_as_a_module() -> None:
    command = [sys.executable, "-P", "-m", "bitnet_onnx", "zoo", "pull", "nothing-of-that-name"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_verbose_logs_to_stderr(run, tiny_checkpoint, tmp_path: Path) -> None:
    result = run("-v", "convert", tiny_checkpoint("tied_mha"), tmp_path / "package")
    assert result.status == 0
    assert "layers.0.attn.q_proj: int4" in result.err
    assert "layers.0.attn.q_proj: int4" not in result.out


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; import bitnet_onnx.cli; print('numpy' in sys.modules, 'onnx' in sys.modules)"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False False\n"
