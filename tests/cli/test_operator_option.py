"""`bitnet-onnx convert --operator`, and the other commands on what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

TINY = "bitnet-tiny"


@pytest.mark.parametrize("name", ["stock", "standard"])
def test_every_command_works_on_the_package(name: str, run, tmp_path: Path) -> None:
    package = tmp_path / name
    converted = run("convert", TINY, package, "--operator", name)
    assert (converted.status, converted.err) == (0, "")
    assert {node.domain for node in onnx.load(package / "model.onnx").graph.node} <= {"", "com.microsoft"}
    overview = run("inspect", package).out
    assert f"operators            {name}" in overview
    assert "onnxruntime 1.24 and later" in overview
    assert json.loads(run("inspect", package, "--json").out)["operators"] == name
    answer = run("infer", package, "--prompt", "In the beginning", "--max-new-tokens", "8", "--json")
    assert answer.status == 0
    assert len(json.loads(answer.out)["ids"]) == 8
    validated = run("validate", package, "--source", TINY, "--tokens", "1,9")
    assert validated.status == 0
    assert f"logits: {name} operators against the numpy reference" in validated.out
    text = tmp_path / "text.txt"
    text.write_text("In the beginning God created the heaven and the earth. " * 40)
    measured = run("evaluate", package, "--text", text, "--json")
    assert measured.status == 0
    assert json.loads(measured.out)["runtime"] == f"{name} operators"


@pytest.mark.parametrize("fallback", ["fast", "exact"])
@pytest.mark.parametrize("name", ["stock", "standard"])
def test_a_fallback_belongs_to_our_operators(
    name: str, fallback: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    line = refused("convert", TINY, tmp_path / "package", "--operator", name, "--fallback", fallback)
    assert f"--fallback belongs to --operator bitnet: {name} operators need no function bodies" in line


@pytest.mark.parametrize("target", ["gguf", "safetensors", "coreml"])
@pytest.mark.parametrize("name", ["bitnet", "stock", "standard"])
def test_operators_belong_to_onnx(name: str, target: str, refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("convert", TINY, tmp_path / "package.mlpackage", "--operator", name, "--to", target)
    assert f"--operator belongs to --to onnx, not to {target}" in line


def test_an_unknown_operator_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "'bitnet', 'stock', 'standard'" in refused("convert", TINY, tmp_path / "package", "--operator", "onnx")


def test_what_a_package_cannot_do_is_told_in_a_line(run, refused: Callable[..., str], tmp_path: Path) -> None:
    package = tmp_path / "package"
    run("convert", TINY, package, "--operator", "standard")
    prompt = ("--prompt", "In", "--max-new-tokens", "2")
    assert "standard operators round activations" in refused("infer", package, *prompt, "--activations", "16")
    assert "use float32" in refused("infer", package, *prompt, "--kv", "int8")
    batch = tmp_path / "batch.jsonl"
    batch.write_text('{"prompt": "In"}\n')
    line = refused("infer", package, "--batch", batch, "--out", tmp_path / "answers.jsonl")
    assert "--operator stock" in line
