"""`bitnet-onnx ops`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_onnx.cli import ops as command
from bitnet_onnx.custom_ops import library_version


def test_the_path_alone(run, operator_library: Path) -> None:
    assert run("ops", "--path").out == f"{operator_library}\n"


def test_all_that_is_known(run, operator_library: Path) -> None:
    out = run("ops").out
    assert f"library: {operator_library}" in out
    assert f"version: {library_version()}" in out
    assert "loads in onnxruntime" in out


@pytest.mark.parametrize("options", [[], ["--path"]])
def test_without_a_library(run, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    monkeypatch.setattr(command, "library_path", lambda: None)
    result = run("ops", *options)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("error: the operator library is not built; packages run on their function bodies")
    assert len(result.err.splitlines()) == 1
