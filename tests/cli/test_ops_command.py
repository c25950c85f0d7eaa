"""`bitnet-onnx ops`."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest

from bitnet_onnx import custom_ops
from bitnet_onnx.custom_ops import library_version


def test_the_path_alone(run, operator_library: Path) -> None:
    assert run("ops", "--path").out == f"{operator_library}\n"


def test_all_that_is_known(run, operator_library: Path) -> None:
    out = run("ops").out
    assert f"library: {operator_library}" in out
    assert f"version: {library_version()}" in out
    assert "operators: version 1" in out
    assert "loads in onnxruntime" in out


def test_facts_for_programs(run, operator_library: Path) -> None:
    facts = json.loads(run("ops", "--json").out)
    assert facts["path"] == str(operator_library)
    assert f"{facts['version']} ({facts['isa']})" == library_version()
    assert (facts["oldest_operator_version"], facts["operator_version"]) == (1, 1)
    assert facts["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize("options", [[], ["--path"], ["--json"], ["--copy", "out"]])
def test_without_a_library(refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str]) -> None:
    monkeypatch.setattr(custom_ops, "library_path", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert "the operator library is not built; packages run on their function bodies" in refused("ops", *options)
    assert list(tmp_path.iterdir()) == []
