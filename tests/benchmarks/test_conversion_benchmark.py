"""The benchmark of the conversion itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_onnx.benchmarks import conversion
from bitnet_onnx.benchmarks._synthetic_checkpoint import write_random_checkpoint
from bitnet_onnx.benchmarks.shape import SHAPES
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import BitnetOnnxError


def test_it_measures_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    arguments = [
        "--shape",
        "tiny",
        "--rounds",
        "1",
        "--folder",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "a.json"),
    ]
    result = CliRunner().invoke(conversion.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["benchmark"] == "conversion"
    assert report["source_bytes"] == 2 * sum(
        rows * columns for _, (rows, columns) in SHAPES["tiny"].spec.matrices()
    ) + 2 * sum(shape[0] for _, shape in SHAPES["tiny"].spec.tensors() if len(shape) == 1)
    assert report["package_bytes"] < report["source_bytes"]
    assert 0 < report["cpu_seconds"] < 60
    assert report["source_megabytes_per_s"] == pytest.approx(report["source_bytes"] / report["seconds"]["median"] / 1e6)
    if sys.platform == "linux":
        assert 10e6 < report["anonymous_bytes"] <= report["peak_bytes"] < 2e9
    assert list((tmp_path / "work").iterdir()) == []


def test_a_conversion_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(BitnetOnnxError, match=r"ended with status 2: error: .*neither an existing path"):
        conversion.convert(tmp_path / "absent", tmp_path / "package")


def test_the_checkpoint_comes_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_onnx.benchmarks._synthetic_checkpoint._SHARD", 1_000_000)
    spec = SHAPES["tiny"].spec
    total = write_random_checkpoint(spec, tmp_path / "source")
    shards = sorted((tmp_path / "source").glob("*.safetensors"))
    assert len(shards) == 3
    assert 0 < sum(shard.stat().st_size for shard in shards) - total < 10_000
    with open_model(tmp_path / "source") as model:
        assert dict(model.spec.tensors()) == dict(spec.tensors())
        assert model.trained_ternary
        values = model.tensors.read("layers.1.mlp.down_proj.weight")
        assert values.std() == pytest.approx(values.shape[1] ** -0.5, rel=0.02)
