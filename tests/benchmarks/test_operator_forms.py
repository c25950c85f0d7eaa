"""The benchmark of packages in every form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from bitnet_onnx.benchmarks import operator_forms

CANDIDATES = {"bitnet", "function bodies", "stock", "standard"}


def test_a_model_in_every_form(tiny_checkpoint: Callable[[str], Path], tmp_path: Path, operator_library: Path) -> None:
    out = tmp_path / "forms.json"
    short = ["--prefill", "8", "--context", "48", "--rounds", "1", "--starts", "0", "--threads", "1"]
    result = CliRunner().invoke(operator_forms.main, [str(tiny_checkpoint("tied_mha")), *short, "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    cases = {comparison["case"]: comparison["candidates"] for comparison in report["comparisons"]}
    assert set(cases) == {"prefill 8", "decode behind 0", "decode behind 32"}
    assert all(set(candidates) == CANDIDATES for candidates in cases.values())
    assert {entry["candidate"] for entry in report["memory"]} == CANDIDATES
    assert set(report["bytes"]) == CANDIDATES - {"function bodies"}
    distances = report["logits"]
    assert distances["bitnet"] == 0
    assert all(0 < distances[name] < 0.05 for name in CANDIDATES - {"bitnet"})
