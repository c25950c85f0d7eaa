"""The benchmark of the batching engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_onnx.benchmarks.serving import engine as serving_engine
from bitnet_onnx.errors import InputError


def test_a_package(tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "serving_engine.json"
    sizes = ["--rows", "1", "--rows", "3", "--tokens", "4", "--prompt", "20", "--reading", "12", "--rounds", "2"]
    result = CliRunner().invoke(serving_engine.main, [str(tiny_package), *sizes, "--threads", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert [comparison["case"] for comparison in report["comparisons"]] == ["1 answers", "3 answers", "first token"]
    assert report["comparisons"][1]["tokens"] == 12
    assert report["gaps"]["chunk_s"] > 0
    assert report["gaps"]["slowest_step_s"] > 0
    assert str(tmp_path) not in out.read_text()


def test_more_than_the_context_is_refused(tiny_package: Path) -> None:
    with pytest.raises(InputError, match="its context is shorter"):
        serving_engine.run(tiny_package, serving_engine.EngineBenchmark(prompt=100_000))
