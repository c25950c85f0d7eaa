"""`bitnet-onnx convert`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from bitnet_onnx.cli import convert as command


def test_it_says_what_it_did(run, tiny_checkpoint, tmp_path: Path) -> None:
    result = run("convert", tiny_checkpoint("untied_gqa"), tmp_path / "package")
    assert result.status == 0
    assert result.err == ""
    assert result.out.startswith(f"{tmp_path / 'package'}\n")
    for text in (
        "llama, 2 layers, hidden 64, vocabulary 515",
        "blocks: int4 in groups of 32 (",
        "head and embedding: int8 (",
        "bits a weight over all, scales included",
        "auto chose int4",
    ):
        assert text in result.out
    assert (tmp_path / "package" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("options", "blocks", "head"),
    [
        (["--weights", "int6", "--group-size", "64"], "int6 in groups of 64 (", "int8 ("),
        (["--weights", "int8", "--head", "int4"], "int8 (", "int4 in groups of 32 ("),
        (["--weights", "float32", "--head", "float32"], "float32 (32.00 bits a weight, exact)", "float32 (32.00"),
        (["--weights", "keep", "--fallback", "exact"], "float32 (", "int8 ("),
        (["--weights", "int4", "--group-size", "0"], "int4 (", "int8 ("),
    ],
)
def test_options(run, tiny_checkpoint, tmp_path: Path, options: list[str], blocks: str, head: str) -> None:
    result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "package", *options)
    assert result.status == 0
    assert f"blocks: {blocks}" in result.out
    assert f"head and embedding: {head}" in result.out
    assert "auto chose" not in result.out


def test_ternary_of_an_ordinary_model_is_warned_of(run, tiny_checkpoint, tmp_path: Path) -> None:
    result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "package", "--weights", "ternary")
    assert result.status == 0
    assert "warning: these weights were not trained to be ternary" in result.err


def test_a_model_that_was_trained_to_be_ternary(run, tiny_checkpoint, tmp_path: Path) -> None:
    result = run("convert", tiny_checkpoint("bitnet"), tmp_path / "auto")
    assert (result.status, result.err) == (0, "")
    assert "bitnet, 2 layers" in result.out
    assert "blocks: ternary (" in result.out
    for weights in ("int4", "keep"):
        result = run("convert", tiny_checkpoint("bitnet"), tmp_path / weights, "--weights", weights)
        assert result.status == 0
        assert "warning: this model was trained with ternary weights" in result.err


def test_overwrite(run, refused, tiny_checkpoint, tmp_path: Path) -> None:
    arguments = ("convert", tiny_checkpoint("tied_mha"), tmp_path / "package")
    assert run(*arguments).status == 0
    before = (tmp_path / "package" / "model.onnx.data").read_bytes()
    assert "--overwrite" in refused(*arguments, "--weights", "int8")
    assert (tmp_path / "package" / "model.onnx.data").read_bytes() == before
    assert run(*arguments, "--weights", "int8", "--overwrite").status == 0
    assert (tmp_path / "package" / "model.onnx.data").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "int5"], "'int5' is not one of 'auto', 'keep'"),
        (["--head", "ternary"], "'ternary' is not one of 'auto', 'keep', 'int8'"),
        (["--fallback", "slow"], "'slow' is not one of 'fast', 'exact'"),
        (["--group-size", "33"], "group size is 33: it must be 0 (one scale a row) or a multiple of 32"),
        (["--group-size", "-32"], "-32 is not in the range x>=0"),
        (["--group-size", "many"], "'many' is not a valid integer"),
    ],
)
def test_bad_options(refused, tiny_checkpoint, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in refused("convert", tiny_checkpoint("tied_mha"), tmp_path / "a" / "package", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_nothing(refused, tmp_path: Path) -> None:
    line = refused("convert", "smollm2-135m-instrct", tmp_path / "a" / "package")
    assert "neither an existing path nor a model of the zoo; did you mean smollm2-135m-instruct" in line
    assert "cannot be a path" in refused("convert", "n" * 5000, tmp_path / "a" / "package")
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_checkpoint(refused, tiny_checkpoint, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_checkpoint("tied_mha"), tmp_path / "source")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors" in refused("convert", source, tmp_path / "a" / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_names_with_markup_and_control_characters(run, tiny_checkpoint, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_checkpoint("tied_mha"), tmp_path / "[red]x[")
    result = run("convert", source, tmp_path / "[bold]\x1b[31m :smile:")
    assert result.status == 0
    assert result.out.splitlines()[0].endswith("[bold]\\x1b[31m :smile:")
    assert "[red]x[" in run("inspect", tmp_path / "[bold]\x1b[31m :smile:").out


def test_progress_on_a_terminal(tiny_checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run) -> None:
    console = Console(stderr=True, force_terminal=True, width=120)
    monkeypatch.setattr(command, "error_console", lambda: console)
    result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "package")
    assert result.status == 0
    assert "layers.1.mlp.down_proj" in result.err
    assert "100%" in result.err
    assert "M weights/s, 0:00 left" in result.err


def test_the_pace() -> None:
    assert command._pace(250_000_000, 1_000_000_000, 2.5) == "100.0 M weights/s, 0:08 left"
    assert command._pace(81_234_567, 2_081_234_567, 10.0) == "8.1 M weights/s, 4:06 left"
    assert command._pace(0, 1000, 0.0) == "0.0 M weights/s, 16:40 left"
    assert command._pace(1000, 1000, 0.0) == "1000.0 M weights/s, 0:00 left"


def test_a_ternary_head_stays_ternary(run, tiny_checkpoint, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_checkpoint("tied_mha"), tmp_path / "source")
    weights = dict(load_file(source / "model.safetensors"))
    table = weights["model.embed_tokens.weight"]
    rng = np.random.default_rng(0)
    # Shards of two halves with scales of their own, and a row of zeros as padding has it.
    steps = np.repeat(rng.random((len(table), 2), np.float32) + np.float32(0.5), 32, axis=1)
    weights["model.embed_tokens.weight"] = rng.integers(-1, 2, table.shape).astype(np.float32) * steps
    weights["model.embed_tokens.weight"][0] = 0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    for options in ([], ["--head", "keep"]):
        result = run("convert", source, tmp_path / "package", "--overwrite", *options)
        assert result.status == 0
        assert "head and embedding: ternary in groups of 32 (3.00 bits a weight, exact)" in result.out
    result = run("convert", source, tmp_path / "package", "--overwrite", "--head", "int8")
    assert "head and embedding: int8 (" in result.out
    assert "exact" not in result.out
