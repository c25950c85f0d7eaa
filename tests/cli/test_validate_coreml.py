"""`bitnet-onnx validate` of a Core ML package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from mil_programs import mb, save, tensor


def test_a_package_is_looked_at_and_a_wrong_one_told(run, tiny_checkpoint, tmp_path: Path) -> None:
    source, package = tiny_checkpoint("untied_gqa"), tmp_path / "model.mlpackage"
    assert run("convert", source, package, "--to", "coreml", "--context", "64").status == 0
    result = run("validate", package, "--source", source, "--prompt", "To be", "--layers", "0,1", "--float16")
    assert (result.status, result.err) == (0, "")
    assert "tensors are equal bit for bit" in result.out
    assert "layers: 2 of 2 give the reference's output" in result.out
    assert "operations that overflow or give no numbers: 0" in result.out
    assert result.out.endswith("the package holds\n")
    found = json.loads(run("validate", package, "--source", source, "--tokens", "5", "--json").out)
    assert found["holds"] is True
    assert {check["way"] for check in found["logits"]} == {"whole", "cached", "masked", "floats"}
    weights = package / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(weights.read_bytes())
    data[128] ^= 1
    weights.write_bytes(bytes(data))
    result = run("validate", package, "--source", source, "--tokens", "5")
    assert result.status == 1
    assert "weights: 20 of 21 tensors" in result.out
    assert result.out.endswith("the package DOES NOT hold\n")


def test_scaled_inputs_are_compared_with_the_scaled_source(run, tiny_checkpoint, tmp_path: Path) -> None:
    source, package, statistics = tiny_checkpoint("tied_mha"), tmp_path / "m.mlpackage", tmp_path / "statistics"
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 40)
    few = ("--tokens", "96", "--window", "32")
    assert run("calibrate", source, "--text", text, "-o", statistics, *few).status == 0
    arguments = ("convert", source, package, "--to", "coreml", "--weights", "int8", "--calibration", statistics)
    assert "inputs of layers were scaled" in run(*arguments).out
    arguments = ("validate", package, "--source", source, "--tokens", "5")
    result = run(*arguments)
    assert (result.status, result.err) == (0, "")
    assert "15 as far from it as the" in result.out
    (tmp_path / "m.tokenizer" / "scaling.safetensors").unlink()
    assert "has the scales of 0" in run(*arguments).err


def test_packages_of_others_are_run(run, tiny_checkpoint, tmp_path: Path) -> None:
    package = save(tmp_path / "p.mlpackage", [tensor(1, None, dtype="float16")], lambda x: mb.relu(x=x, name="y"))
    result = run("validate", package)
    assert result.status == 0
    assert result.out == "function main: 1 operations ran: y [1, 1]\nthe program runs\n"
    assert "compared with nothing" in result.err
    refused = run("validate", package, "--source", tiny_checkpoint("untied_gqa"))
    assert refused.status == 2
    assert "no package of ours" in refused.err


def test_half_precision_is_told_by_the_status(run, tmp_path: Path) -> None:
    def body(x: object) -> object:
        return mb.exp(x=mb.add(x=x, y=np.float16(20)), name="y")

    package = save(tmp_path / "p.mlpackage", [tensor(1, 1, dtype="float16")], body)
    assert run("validate", package).status == 0
    result = run("validate", package, "--float16")
    assert result.status == 1
    assert "float16: exp y: 1 values up to" in result.out
    assert result.out.endswith("the program DOES NOT hold\n")


def test_options_of_the_other_kind_are_refused(run, tiny_package, tiny_checkpoint, tmp_path: Path) -> None:
    assert (
        "--float16 is for an .mlpackage"
        in run("validate", tiny_package, "--source", tiny_checkpoint("untied_gqa"), "--float16").err
    )
    assert "--fallback is for ONNX packages" in run("validate", tmp_path / "x.mlpackage", "--fallback").err
    assert "a directory" in run("validate", tmp_path / "x.mlpackage").err
