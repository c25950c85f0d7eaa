"""The benchmark of Core ML packages on a Mac, with numpy in the place of Core ML."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from coreml_packages import needs_coremltools

from bitnet_onnx.api import convert_coreml
from bitnet_onnx.benchmarks import coreml_device
from bitnet_onnx.converters import CoreMLOptions
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.evaluation.mil.package import Package

pytestmark = needs_coremltools


@pytest.fixture
def package(tiny_checkpoint, tmp_path: Path) -> Path:
    made = tmp_path / "tiny.mlpackage"
    convert_coreml(tiny_checkpoint("untied_gqa"), made, CoreMLOptions(split=True), context_length=32)
    return made


def test_the_same_numbers_agree(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml_device, "load_coreml", coreml_device.load_numpy)
    few = ["--prompt", "7", "--steps", "3", "--unit", "cpu", "--unit", "all"]
    arguments = [str(package), *few, "--out", str(tmp_path / "report.json")]
    result = CliRunner().invoke(coreml_device.main, arguments, catch_exceptions=False)
    assert result.output.startswith("cpu: logits differ by 0 (in parts ")
    units = json.loads((tmp_path / "report.json").read_text())["units"]
    assert set(units) == {"cpu", "all"}
    for found in units.values():
        assert found["tokens_agree"] is True
        assert found["whole_error"] == 0
        # One call or several: sums in another order may move an activation by one integer.
        assert found["cached_error"] < 0.05
        assert (found["steps"], found["decode_tokens_per_s"] > 0, found["prefill_tokens_per_s"] > 0) == (3, True, True)


def test_other_numbers_do_not(package: Path) -> None:
    def load(opened: Package, unit: str) -> coreml_device.Start:
        start = coreml_device.load_numpy(opened, unit)

        class Wrong:
            def __init__(self) -> None:
                self._running = start()

            def read(self, ids):
                return np.roll(self._running.read(ids), 1, axis=1)

        return Wrong

    found = coreml_device.measure(package, load, ["gpu"], prompt=7, steps=2)["gpu"]
    assert found.tokens_agree is False
    assert found.whole_error > 0.5


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_elsewhere_it_says_where_it_runs(package: Path) -> None:
    with pytest.raises(UnsupportedError, match="macOS only"):
        coreml_device.measure(package, coreml_device.load_coreml, ["cpu"], prompt=2, steps=1)
