"""The benchmark of conversions to Core ML."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from coreml_packages import needs_coremltools

from bitnet_onnx.benchmarks import coreml_conversion
from bitnet_onnx.benchmarks.shape import SHAPES


@needs_coremltools
def test_it_measures_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    arguments = [
        "--shape",
        "tiny",
        "--way",
        "lut",
        "--folder",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "a.json"),
    ]
    result = CliRunner().invoke(coreml_conversion.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["benchmark"] == "coreml-conversion"
    (measured,) = report["ways"].values()
    blocks = sum(
        rows * columns for role, (rows, columns) in SHAPES["tiny"].spec.matrices() if role.startswith("layers.")
    )
    assert blocks / 4 < measured["bytes"]["weight.bin"] < report["source_bytes"] / 2
    assert 0 < measured["cpu_seconds"] < 60
    assert list((tmp_path / "work").iterdir()) == []
