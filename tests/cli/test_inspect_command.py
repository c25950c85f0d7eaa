"""`bitnet-onnx inspect`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bitnet_models import CASES, write
from coreml_packages import needs_coremltools
from safetensors.numpy import save_file
from tiny_models import TINY, tensors, write_checkpoint

from bitnet_onnx.inspection import inspect

KEYS = {
    "kind",
    "path",
    "family",
    "source",
    "sizes",
    "parameters",
    "bits_per_weight",
    "files",
    "readers",
    "problem",
    "operators",
}


def test_a_package(run, tiny_package: Path) -> None:
    out = run("inspect", tiny_package).out
    for text in ("llama", "safetensors, untied_gqa", "int4, groups of 32", "int8", "model.onnx.data", "genai 0.18"):
        assert text in out
    assert "q_proj" not in out
    listing = run("inspect", tiny_package, "--layers").out
    assert "layers.1.mlp.down_proj" in listing
    assert "64 x 172" in listing
    assert " %" in listing


def test_a_package_as_json(run, tiny_package: Path) -> None:
    found = json.loads(run("inspect", tiny_package, "--json").out)
    assert set(found) == KEYS
    assert (found["kind"], found["family"], found["problem"]) == ("package", "llama", None)
    assert found["sizes"]["vocab_size"] == 515
    assert found["files"]["model.onnx"] == (tiny_package / "model.onnx").stat().st_size
    whole = json.loads(run("inspect", tiny_package, "--json", "--layers").out)
    assert set(whole) == KEYS | {"layers"}
    assert len(whole["layers"]) == 16
    assert sum(np.prod(layer["shape"]) for layer in whole["layers"]) == found["parameters"]
    stored = {layer["role"]: layer["stored"] for layer in whole["layers"]}
    assert stored["embed_tokens"] == "int8"
    assert stored["lm_head"] == "int8, 16-bit activations"
    assert stored["layers.0.attn.q_proj"] == "int4, groups of 32"


@needs_coremltools
def test_a_core_ml_package(run, tiny_checkpoint, tmp_path: Path) -> None:
    package = tmp_path / "tiny.mlpackage"
    assert run("convert", tiny_checkpoint("untied_gqa"), package, "--to", "coreml", "--split").status == 0
    found = json.loads(run("inspect", package, "--json", "--layers").out)
    assert set(found) == KEYS | {"layers"}
    assert (found["kind"], found["family"], found["source"]) == ("Core ML package", "llama", "safetensors, untied_gqa")
    assert found["sizes"]["vocab_size"] == 515
    assert len(found["layers"]) == 16
    stored = {layer["role"]: layer["stored"] for layer in found["layers"]}
    assert stored["layers.0.attn.q_proj"] == "int4, groups of 32"
    assert 4 < found["bits_per_weight"] < 9
    assert "Core ML on iOS 18 and macOS 15 and later: prefill, decode" in found["readers"]
    assert "Data/com.apple.CoreML/weights/weight.bin" in found["files"]
    assert "int4, groups of 32: 0.1 M weights" in run("inspect", package).out
    for command in (["infer", package, "--prompt", "x"], ["convert", package, tmp_path / "out"]):
        refused = run(*command)
        assert refused.status == 2
        assert "is a Core ML package" in refused.err


def test_a_checkpoint(run, tiny_checkpoint) -> None:
    found = json.loads(run("inspect", tiny_checkpoint("untied_gqa"), "--json", "--layers").out)
    assert (found["kind"], found["bits_per_weight"]) == ("checkpoint", 32)
    assert found["readers"] == ["bitnet-onnx convert"]
    assert found["sizes"]["num_key_value_heads"] == 2
    names = {layer["role"] for layer in found["layers"]}
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert {layer["relative_error"] for layer in found["layers"]} == {None}
    assert "checkpoint" in run("inspect", tiny_checkpoint("untied_gqa"), "--layers").out


@pytest.mark.zoo
def test_a_gguf_file(run, zoo_model: Path) -> None:
    found = json.loads(run("inspect", zoo_model, "--json").out)
    assert found["family"] == "llama"
    assert found["source"].startswith("gguf, ")
    assert found["files"] == {zoo_model.name: zoo_model.stat().st_size}
    assert 4 < found["bits_per_weight"] < 8


def test_why_a_checkpoint_cannot_be_converted(run, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "family", TINY["tied_mha"])
    (source / "config.json").write_text(json.dumps(TINY["tied_mha"].config | {"model_type": "mamba"}))
    result = run("inspect", source)
    assert result.status == 0
    assert "not convertible" in result.out
    assert "'mamba' is not supported" in " ".join(result.out.split())
    source = write_checkpoint(tmp_path / "tensor", TINY["tied_mha"])
    weights = tensors(TINY["tied_mha"])
    del weights["model.norm.weight"]
    save_file(weights, source / "model.safetensors")
    found = json.loads(run("inspect", source, "--json").out)
    assert found["readers"] == []
    assert "'model.norm.weight' is missing" in found["problem"]


def test_names_out_of_a_foreign_file_do_nothing(run, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["tied_mha"])
    weights = tensors(TINY["tied_mha"]) | {"[/red]\x1b[2J:smile:": np.ones((2, 2), np.float32)}
    save_file(weights, source / "model.safetensors")
    result = run("inspect", source, "--layers")
    assert result.status == 0
    assert "\x1b" not in result.out
    assert "[/red]" in result.out


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_what_is_neither(refused, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert name in refused("inspect", tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": None},
        {"layers": [{}]},
        {"layers": [3]},
        {
            "layers": [
                {
                    "role": "a",
                    "shape": [1],
                    "weights": "x",
                    "group_size": 0,
                    "activation_bits": 8,
                    "bits_per_weight": "x",
                }
            ]
        },
        {
            "layers": [
                {"role": "a", "shape": 7, "weights": "x", "group_size": 0, "activation_bits": 8, "bits_per_weight": 1}
            ]
        },
        {"source": "x"},
        {"operator": {"version": 1}},
    ],
)
def test_a_manifest_that_is_broken(refused, tiny_package: Path, tmp_path: Path, change: dict) -> None:
    package = shutil.copytree(tiny_package, tmp_path / "package")
    manifest = json.loads((package / "bitnet_onnx.json").read_text())
    (package / "bitnet_onnx.json").write_text(json.dumps(manifest | change))
    assert "bitnet_onnx.json" in refused("inspect", package)


def test_a_checkpoint_with_norms_inside_linear_layers_has_no_problem(tmp_path: Path) -> None:
    assert inspect(write(tmp_path, CASES["llama_divides_norms"]())).problem is None
