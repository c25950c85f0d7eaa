"""`bitnet-onnx convert --to safetensors` and `--to gguf`."""

from __future__ import annotations

from pathlib import Path

import pytest
from exports import write_source
from rich.console import Console

import bitnet_onnx
from bitnet_onnx.cli import convert as command


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source", "bitnet")


def test_there_and_back(run, source: Path, tmp_path: Path) -> None:
    assert run("convert", source, tmp_path / "package").status == 0
    result = run("convert", "--to", "safetensors", tmp_path / "package", tmp_path / "directory")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == str(tmp_path / "directory")
    assert lines[1].startswith("  bitnet, 2 layers, hidden 64, vocabulary 515; ")
    assert lines[2:] == [
        "  safetensors: blocks packed ternary (2 bits a weight), the rest float32",
        "  nothing was lost",
    ]
    result = run("convert", "--to", "gguf", "--ternary", "tq1_0", tmp_path / "directory", tmp_path / "model.gguf")
    assert (result.status, result.err) == (0, "")
    assert "gguf: architecture bitnet-b1.58, read by bitnet.cpp and not by llama.cpp; 12 ternary matrices" in result.out
    assert "matrices as float16: " in result.out
    result = run("convert", tmp_path / "model.gguf", tmp_path / "again")
    assert result.status == 0
    assert "blocks: ternary" in result.out


def test_options(run, source: Path, tmp_path: Path) -> None:
    options = ("--to", "safetensors", "--format", "dense", "--dtype", "bfloat16")
    result = run("convert", *options, source, tmp_path / "directory")
    assert "safetensors: dense bfloat16" in result.out
    assert "floats as bfloat16: " in result.out
    assert (
        run("convert", "--to", "gguf", "--no-tokenizer", "--dtype", "float32", source, tmp_path / "x.gguf").status == 0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "gguf", "--head", "int8"], "--head belongs to --to onnx or coreml, not to gguf"),
        (["--to", "safetensors", "--weights", "int4"], "--weights belongs to --to onnx or coreml, not to safetensors"),
        (["--to", "safetensors", "--no-tokenizer"], "--no-tokenizer belongs to --to gguf, not to safetensors"),
        (["--to", "gguf", "--format", "packed"], "--format belongs to --to safetensors, not to gguf"),
        (["--dtype", "float16"], "--dtype belongs to --to safetensors or gguf, not to onnx"),
        (["--to", "gguf"], "the name of a GGUF file ends in .gguf"),
        (["--to", "onnxx"], "'onnxx' is not one of 'onnx', 'coreml', 'safetensors', 'gguf'"),
    ],
)
def test_bad_options(refused, source: Path, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in refused("convert", *options, source, tmp_path / "a" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_overwrite(run, refused, source: Path, tmp_path: Path) -> None:
    arguments = ("convert", "--to", "safetensors", source, tmp_path / "directory")
    assert run(*arguments).status == 0
    assert "--overwrite" in refused(*arguments)
    assert run(*arguments, "--overwrite").status == 0
    assert "written by something else" in refused("convert", "--to", "safetensors", tmp_path / "directory", source)


def test_progress_on_a_terminal(run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "error_console", lambda: Console(stderr=True, force_terminal=True))
    result = run("convert", "--to", "gguf", source, tmp_path / "out.gguf")
    assert result.status == 0
    assert "reading" in result.err or "blk." in result.err


def test_the_python_api(source: Path, tmp_path: Path) -> None:
    options = bitnet_onnx.SafetensorsOptions()
    written = bitnet_onnx.export(source, tmp_path / "directory", options)
    assert written.total_bytes == sum(path.stat().st_size for path in (tmp_path / "directory").iterdir())
    again = bitnet_onnx.export(tmp_path / "directory", tmp_path / "out.gguf", bitnet_onnx.GgufOptions())
    assert again.files == {"out.gguf": (tmp_path / "out.gguf").stat().st_size}
