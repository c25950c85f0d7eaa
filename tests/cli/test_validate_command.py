"""`bitnet-onnx validate`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tiny_models import TINY, write_checkpoint


def test_a_package_that_holds(run, tiny_package: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    source = tiny_checkpoint("untied_gqa")
    result = run("validate", tiny_package, "--source", source, "--tokens", "1,12", "--layers", "1")
    assert (result.status, result.err) == (0, "")
    assert "weights: 21 of 21 tensors are equal bit for bit" in result.out
    assert "after layer" in result.out
    assert "made-up tokens" in result.out
    assert result.out.splitlines()[-1] == "the package holds"
    result = run("validate", tiny_package, "--source", source, "--prompt", "To be", "--layers", "--fallback")
    assert result.status == 0
    assert "fast function bodies" in result.out
    assert "made-up tokens" not in result.out


def test_json(run, tiny_package: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    source = tiny_checkpoint("untied_gqa")
    found = json.loads(run("validate", tiny_package, "--source", source, "--tokens", "5", "--layers", "--json").out)
    assert found["holds"] is True
    assert {"package", "source", "runtime", "weights", "logits", "layers", "warnings", "holds"} == set(found)
    assert [one["layer"] for one in found["layers"]] == [0, 1]
    assert [one["way"] for one in found["logits"]] == ["floats", "whole", "cached"]
    assert {one["holds"] for one in found["weights"]} == {True}


def test_a_package_that_does_not_hold(
    run, tiny_package: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    other = write_checkpoint(tmp_path / "other", TINY["untied_gqa"].__class__(99, TINY["untied_gqa"].config))
    result = run("validate", tiny_package, "--source", other, "--tokens", "3")
    assert result.status == 1
    assert result.err.startswith("warning: ")
    assert "weights: 0 of 21 tensors" in result.out
    assert "layers.0.attn.q_proj" in result.out
    assert "... and 1 more" in result.out
    assert result.out.splitlines()[-1] == "the package DOES NOT hold"
    found = json.loads(run("validate", tiny_package, "--source", other, "--tokens", "3", "--json").out)
    assert found["holds"] is False
    assert found["weights"][0]["role"] == "embed_tokens"


def test_bad_input(refused, tiny_package: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny_checkpoint("untied_gqa")
    assert "made from another model" in refused("validate", tiny_package, "--source", tiny_checkpoint("bitnet"))
    assert "Missing option '--source'" in refused("validate", tiny_package)
    assert "numbers with commas" in refused("validate", tiny_package, "--source", source, "--tokens", "1;2")
    assert "--layers holds 9" in refused("validate", tiny_package, "--source", source, "--layers", "9")
    assert "no such directory" in refused("validate", tmp_path / "none", "--source", source)
    broken = Path(shutil.copytree(tiny_package, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes(b"\x08\x0a nothing of the kind")
    assert "not an ONNX graph" in refused("validate", broken, "--source", source)
    (broken / "model.onnx").unlink()
    assert "model.onnx is missing" in refused("validate", broken, "--source", source)


def test_a_truncated_data_file(run, tiny_package: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_package, tmp_path / "broken"))
    with (broken / "model.onnx.data").open("r+b") as file:
        file.truncate(1000)
    result = run("validate", broken, "--source", tiny_checkpoint("untied_gqa"))
    assert result.status == 1
    assert "ends behind its data" in " ".join(result.out.split())
    assert "logits: not compared" in result.out
