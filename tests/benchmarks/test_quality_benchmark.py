"""`benchmarks/quality.py` on a tiny model: held-out text, a reference for all, and going on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_onnx.benchmarks import quality
from bitnet_onnx.evaluation.quality import QualityOptions, WindowRule, evaluate


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text("".join(f"{line} begat {line + 1}, and they were many.\n" for line in range(200)))
    return path


def test_the_end_of_a_text_is_held_out(text: Path) -> None:
    whole = text.read_text()
    found = quality.held_out(text, 0.2)
    assert whole.endswith(found)
    assert whole[: -len(found)].endswith("\n")
    assert abs(len(found) - 0.2 * len(whole)) < 50


def test_measurements_and_a_second_call(
    text: Path, tmp_path: Path, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    source = tiny_checkpoint("tied_mha")
    arguments = [str(source), "--text", str(text), "--tokens", "512", "--together", "1", "--out", str(out)]
    monkeypatch.setattr(quality, "PEERS", quality.PEERS[:1])
    monkeypatch.setattr(quality, "SETTINGS", quality.SETTINGS[:1])
    runner = CliRunner()
    result = runner.invoke(quality.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(out.read_text())
    assert [one["name"] for one in report["results"]] == ["int8", "float32 weights"]
    assert [one["ours"] for one in report["results"]] == [True, False]
    assert report["held_out"] == "the last 20% of each text"
    assert result.output.count("top-1") == 4
    # The same as `evaluate` finds.
    package = tmp_path / "package"
    quality.candidates(str(source), package)[0].write(package)
    (tmp_path / "held").write_text(quality.held_out(text, 0.2))
    found = evaluate(
        package,
        texts=[tmp_path / "held"],
        reference=source,
        options=QualityOptions(WindowRule(tokens=512)),
    )
    measured = report["results"][0]["texts"]
    assert found.total is not None
    assert found.total.comparison is not None
    assert [one["name"] for one in measured] == ["text", "all"]
    assert measured[1]["perplexity"] == found.total.perplexity
    assert measured[1]["comparison"]["divergence"] == found.total.comparison.divergence
    # What is there is not measured again.
    monkeypatch.setattr(quality, "SETTINGS", quality.SETTINGS[:1])
    again = runner.invoke(quality.main, arguments, catch_exceptions=False)
    assert (again.exit_code, again.output) == (0, "")
    assert json.loads(out.read_text()) == report
    other = runner.invoke(quality.main, [*arguments, "--tokens", "256"])
    assert other.exit_code == 1
    assert "holds other measurements" in str(other.exception)
