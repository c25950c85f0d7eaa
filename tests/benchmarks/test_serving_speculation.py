"""The benchmark of guessed tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_onnx.benchmarks import serving_speculation
from bitnet_onnx.benchmarks.serving_speculation import SpeculationBenchmark
from bitnet_onnx.errors import BitnetOnnxError, InputError


@pytest.mark.parametrize("clock", [[], ["--cpu-time"]])
def test_a_package(tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[str]) -> None:
    monkeypatch.setattr(serving_speculation, "KINDS", {"repeats": ("ababababab", "aaaa"), "free text": ("abc",)})
    out = tmp_path / "results" / "serving_speculation.json"
    sizes = ["--rows", "1", "--rows", "3", "--tokens", "9", "--rounds", "2", "--threads", "1"]
    result = CliRunner().invoke(serving_speculation.main, [str(tiny_package), *sizes, *clock, "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    cases = [comparison["case"] for comparison in report["comparisons"]]
    assert cases == [f"{kind}, {rows}" for kind in serving_speculation.KINDS for rows in (1, 3)]
    assert [guess["case"] for guess in report["guesses"]] == cases
    for guess in report["guesses"]:
        assert 0 <= guess["accepted_tokens"] <= guess["drafted_tokens"]
        assert guess["generated_tokens"] > guess["steps"] > 0
    assert str(tmp_path) not in out.read_text()


def test_answers_longer_than_the_context_are_refused(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_speculation, "KINDS", {"free text": ("abc",)})
    with pytest.raises(InputError, match="context of 128 tokens is shorter than the 100"):
        serving_speculation.run(tiny_package, SpeculationBenchmark(tokens=100_000))


def test_an_answer_that_differs_is_a_fault() -> None:
    play = serving_speculation._Play([(1,)], 1, SpeculationBenchmark(), drawn=False)
    play._answers = {"bitnet": [(1, 2)], "without": [(1, 3)]}
    with pytest.raises(BitnetOnnxError, match="this is a fault"):
        play.check()
