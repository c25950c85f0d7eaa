"""The benchmark of int8 keys and values."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_onnx.benchmarks import kv_precision
from bitnet_onnx.converters import convert
from bitnet_onnx.errors import InputError


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"{number} squared is {number * number}" for number in range(200)))
    return path


@pytest.fixture(scope="module")
def converted(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a context of 512 tokens."""
    package = tmp_path_factory.mktemp("kv") / "package"
    convert(tiny_checkpoint("untied_gqa"), package)
    return package


def test_a_package(converted: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "kv_precision.json"
    arguments = ["--windows", "2", "--long-window", "300", "--contexts", "40", "--rounds", "2", "--threads", "1"]
    result = CliRunner().invoke(kv_precision.main, [str(converted), "--text", str(text), *arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["bytes_a_token"]["float32"] == 4 * report["bytes_a_token"]["int8"]
    assert [comparison["case"] for comparison in report["comparisons"]] == ["decode behind 40"]
    assert set(report["comparisons"][0]["candidates"]) == {"bitnet", "float32"}
    assert len(report["perplexity"]) == 6
    for entry in report["perplexity"]:
        assert entry["text"] == "text"
        assert entry["windows"] in ("2 of 256", "1 of 300")
        assert entry["perplexity"] > 1
        assert (entry["change_percent"] == 0) is (entry["cache"] == "float32")
        assert abs(entry["change_percent"]) < 20
    assert str(tmp_path) not in out.read_text()


def test_either_part_alone(converted: Path, text: Path) -> None:
    settings = kv_precision.KvSettings(windows=1, long_window=0, contexts=(10,), steps=1, rounds=1, threads=1)
    report = kv_precision.run(converted, [], settings).as_dict()
    assert (len(report["comparisons"]), report["perplexity"]) == (1, [])
    report = kv_precision.run(converted, [text], replace(settings, contexts=())).as_dict()
    assert (report["comparisons"], len(report["perplexity"])) == ([], 3)


def test_what_is_too_short_is_refused(converted: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its context is shorter"):
        kv_precision.run(converted, [text], kv_precision.KvSettings(contexts=(10**6,)))
    short = tmp_path / "short.txt"
    short.write_text("too little")
    settings = kv_precision.KvSettings(windows=1, long_window=0, contexts=(10,))
    with pytest.raises(InputError, match="10 tokens, expected at least 768"):
        kv_precision.run(converted, [short], settings)
