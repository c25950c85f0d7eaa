"""The benchmark of decode steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_onnx.benchmarks.serving import step as serving_step
from bitnet_onnx.errors import InputError


def test_a_package(tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "serving_step.json"
    arguments = ["--rows", "1", "--rows", "3", "--context", "5", "--steps", "2", "--rounds", "2", "--threads", "1"]
    result = CliRunner().invoke(serving_step.main, [str(tiny_package), *arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "decode 3" in result.output
    report = json.loads(out.read_text())
    assert report["benchmark"] == "serving_step"
    assert [comparison["case"] for comparison in report["comparisons"]] == ["decode 1", "decode 3"]
    assert [set(comparison["candidates"]) for comparison in report["comparisons"]] == [
        {"bitnet", "bare graph", "one sequence"},
        {"bitnet", "bare graph"},
    ]
    for part, rows in zip(report["parts"], (1, 3), strict=True):
        assert part["rows"] == rows
        assert part["graph_us"] > 0
        assert part["new_binding_us"] > 0
        assert part["share_of_bare"] > 0
    assert report["memory_by_owner"]["kv"] > 0
    assert str(tmp_path) not in out.read_text()


def test_more_than_the_context_is_refused(tiny_package: Path) -> None:
    with pytest.raises(InputError, match="its context is shorter"):
        serving_step.run(tiny_package, serving_step.StepSettings(context=100_000))


def test_more_than_the_memory_is_refused(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_step, "default_budget", lambda: 2**23)
    settings = serving_step.StepSettings(rows=(64,), context=100, steps=1, rounds=1, threads=1)
    with pytest.raises(InputError, match="no memory for 64 sequences of 101 tokens"):
        serving_step.run(tiny_package, settings)
