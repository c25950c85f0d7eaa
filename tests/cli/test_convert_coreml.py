"""`bitnet-onnx convert --to coreml`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from coreml_packages import needs_coremltools

from bitnet_onnx.converters.coreml._tools import load_tools
from bitnet_onnx.converters.coreml.package import MODEL_FILE, WEIGHT_FILE

pytestmark = needs_coremltools

TO = ("--to", "coreml")


def test_it_says_what_it_did_and_writes_the_tokenizer_beside(run, tiny_checkpoint, tmp_path: Path) -> None:
    source, package = tiny_checkpoint("bitnet"), tmp_path / "model.mlpackage"
    result = run("convert", source, package, *TO, "--split")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"{package}\n")
    assert "bitnet, 2 layers, hidden 64, vocabulary 515" in result.out
    assert "blocks: ternary (" in result.out
    beside = tmp_path / "model.tokenizer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.mlpackage", "model.tokenizer"]
    assert sorted(path.name for path in beside.iterdir()) == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((beside / "config.json").read_text())["model_type"] == "bitnet"
    # The same command again replaces nothing, and with --overwrite both.
    again = run("convert", source, package, *TO)
    assert again.status == 2
    assert f"{package} exists: choose another output, or replace it with --overwrite" in again.err
    size = (package / MODEL_FILE).stat().st_size
    assert run("convert", source, package, *TO, "--overwrite").status == 0
    assert 0 < (package / MODEL_FILE).stat().st_size < size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.mlpackage", "model.tokenizer"]


def test_precisions_and_the_context(run, tiny_checkpoint, tmp_path: Path) -> None:
    options = ("--weights", "int8", "--head", "int6", "--group-size", "0", "--context", "48", "--target", "ios26")
    result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "a.mlpackage", *TO, *options)
    assert result.status == 0
    assert "blocks: int8 (" in result.out
    assert "head and embedding: int6 in groups of 32 (" in result.out
    model = (tmp_path / "a.mlpackage" / MODEL_FILE).read_bytes()
    assert b'"context":48,' in model
    assert b'"target":"iOS26"' in model
    weights = (tmp_path / "a.mlpackage" / WEIGHT_FILE).stat().st_size
    assert 0 < weights < 515 * 64 * 2 + 2 * 64 * (4 * 64 + 3 * 172) * 1.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fallback", "exact", *TO), "--fallback belongs to --to onnx, not to coreml"),
        (("--split",), "--split belongs to --to coreml, not to onnx"),
        (("--coreml-weights", "sparse", "--to", "gguf"), "--coreml-weights belongs to --to coreml, not to gguf"),
        (("--weights", "int8", "--to", "gguf"), "--weights belongs to --to onnx or coreml, not to gguf"),
    ],
)
def test_options_of_other_targets(run, tiny_checkpoint, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "a.mlpackage", *options)
    assert result.status == 2
    assert message in result.err
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_package(run, tiny_checkpoint, tmp_path: Path) -> None:
    result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "package", *TO)
    assert result.status == 2
    assert result.err == f"error: {tmp_path / 'package'}: the name of a Core ML package ends in .mlpackage\n"
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_is_never_replaced(run, tiny_checkpoint, tmp_path: Path) -> None:
    for name, problem in (("a.mlpackage", "Core ML package"), ("a.tokenizer", "tokenizer directory")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("precious")
        result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "a.mlpackage", *TO, "--overwrite")
        assert result.status == 2
        assert f"{tmp_path / name} exists and is not a {problem} of ours" in result.err
        assert [path.name for path in tmp_path.iterdir()] == [name]
        shutil.rmtree(tmp_path / name)


def test_a_conversion_that_fails_leaves_nothing(run, tiny_checkpoint, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_checkpoint("tied_mha"), tmp_path / "source")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run("convert", source, tmp_path / "a.mlpackage", *TO).status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_error_amid_the_writing_leaves_the_old_package(
    run, tiny_checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, package = tiny_checkpoint("tied_mha"), tmp_path / "a.mlpackage"
    assert run("convert", source, package, *TO, "--context", "16").status == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bitnet_onnx.converters.coreml.convert.write_tokenizer", full)
    result = run("convert", source, package, *TO, "--overwrite")
    assert result.status == 2
    assert "No space left on device" in result.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_weight_file_that_cannot_be_written(
    run, tiny_checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, _: str) -> None: ...

        def __getattr__(self, _: str) -> object:
            def write(_: object) -> int:
                raise RuntimeError("could not write data")

            return write

    monkeypatch.setattr("bitnet_onnx.converters.coreml._weight_file._new_writer", lambda tools, path: Full(path))
    result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "a.mlpackage", *TO)
    assert result.status == 2
    assert "weight.bin: cannot be written: could not write data; free some space" in result.err
    assert list(tmp_path.iterdir()) == []


def test_without_coremltools(run, tiny_checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    load_tools.cache_clear()
    try:
        result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "a.mlpackage", *TO)
    finally:
        load_tools.cache_clear()
    assert result.status == 2
    assert result.err == "error: --to coreml needs coremltools: pip install 'bitnet-onnx[coreml]'\n"
    assert list(tmp_path.iterdir()) == []


def test_the_context_is_bounded_where_nobody_asks(run, tiny_checkpoint, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_checkpoint("tied_mha"), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10**9}))
    assert run("convert", source, tmp_path / "a.mlpackage", *TO).status == 0
    assert b'"context":2048,' in (tmp_path / "a.mlpackage" / MODEL_FILE).read_bytes()
    result = run("convert", source, tmp_path / "b.mlpackage", *TO, "--context", "1000000000")
    assert result.status == 2
    assert "more than the limit of 4294967296; choose a shorter --context" in result.err


def test_what_calibration_found_is_applied_and_can_be_validated(run, tiny_checkpoint, tmp_path: Path) -> None:
    source, package, stats = tiny_checkpoint("tied_mha"), tmp_path / "a.mlpackage", tmp_path / "stats"
    (tmp_path / "text").write_text("In the beginning there was a word, and many words came after it. " * 40)
    assert run("calibrate", source, "--text", tmp_path / "text", "-o", stats).status == 0
    result = run("convert", source, package, *TO, "--calibration", stats, "--context", "64")
    assert result.status == 0
    assert "inputs of layers were scaled to round better" in result.out
    assert b'"method":"gptq"' in (package / MODEL_FILE).read_bytes()
    assert (tmp_path / "a.tokenizer" / "scaling.safetensors").exists()
    assert run("validate", package, "--source", source).status == 0
