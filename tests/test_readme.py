"""What the README shows can be run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.zoo
@pytest.mark.usefixtures("zoo_model")
def test_the_python_examples_run(tmp_path: Path) -> None:
    code = "\n".join(blocks("python"))
    assert "bitnet_onnx.convert(" in code
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    assert "Tokyo" in result.stdout


def shown_commands() -> list[list[str]]:
    lines = [line.partition("#")[0] for block in blocks("console") for line in block.splitlines()]
    return [line.split()[2:] for line in lines if line.startswith("$ bitnet-onnx ")]


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_the_commands_shown_have_only_options_that_exist(words: list[str]) -> None:
    name = words[:2] if words[0] == "benchmark" else words[:1]
    result = subprocess.run(
        [sys.executable, "-P", "-m", "bitnet_onnx", *name, "--help"], capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    for option in (word for word in words if word.startswith("--")):
        assert f" {option} " in result.stdout
