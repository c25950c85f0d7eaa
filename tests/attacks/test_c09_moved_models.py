"""Class 9: a model that was moved without its other files, or with a part of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest
from bounded_command import run_bounded

from bitnet_onnx.cli import main

PACKAGE = Path(__file__).parents[2] / "model_zoo" / "packages" / "bitnet-tiny"
WHOLE = "copy the package's whole directory"


Refused = Callable[..., str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command that must end with status 2 and one line, and gives the line; nothing may be written."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert (caught.value.code, out) == (2, ""), err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert list(folder.iterdir()) == []
        return line

    return call


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A folder that holds model.onnx and nothing else."""
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(PACKAGE / "model.onnx", folder)
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(PACKAGE, tmp_path / "copy")


def commands(package: Path) -> list[tuple[str | Path, ...]]:
    return [
        ("infer", package, "--prompt", "a"),
        ("inspect", package),
        ("validate", package, "--source", PACKAGE),
        ("convert", package, "out"),
    ]


@pytest.mark.parametrize("number", range(4))
def test_the_graph_alone(refused: Refused, alone: Path, number: int) -> None:
    line = refused(*commands(alone)[number])
    assert f"{alone} holds model.onnx without bitnet_onnx.json: model.onnx is the graph alone" in line
    assert WHOLE in line


@pytest.mark.parametrize("number", [0, 1])
def test_the_file_instead_of_its_directory(refused: Refused, alone: Path, number: int) -> None:
    assert WHOLE in refused(*commands(alone / "model.onnx")[number])
    file = PACKAGE / "model.onnx"
    line = refused(*commands(file)[number])
    assert f"{file} is one file of a package: give its directory, {PACKAGE}" in line


@pytest.mark.parametrize("number", range(4))
def test_without_the_weights(refused: Refused, copy: Path, number: int) -> None:
    (copy / "model.onnx.data").unlink()
    line = refused(*commands(copy)[number])
    assert "model.onnx.data" in line
    assert "is missing" in line
    assert WHOLE in line


def test_with_half_of_the_weights(copy: Path, tmp_path: Path) -> None:
    data = copy / "model.onnx.data"
    size = data.stat().st_size
    os.truncate(data, size // 2)
    (tmp_path / "empty").mkdir()
    ended = run_bounded(*commands(copy)[0], folder=tmp_path / "empty")
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert f"file_length: {size // 2} are out of bounds" in line
    assert line.endswith(f"; if model.onnx.data was cut short, {WHOLE} again")


def test_what_the_runtime_itself_says(alone: Path) -> None:
    """docs/deploy/library.md explains these words."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match=r"External data path does not exist:.*model\.onnx\.data"):
        ort.InferenceSession(alone / "model.onnx", options, providers=["CPUExecutionProvider"])
