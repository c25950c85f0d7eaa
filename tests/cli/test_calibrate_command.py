"""`bitnet-onnx calibrate`, what `convert` makes of it, and `report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file
from texts import write_words

from bitnet_onnx.calibration import open_statistics
from bitnet_onnx.calibration import sensitivity as module
from bitnet_onnx.calibration.sensitivity import Candidate
from bitnet_onnx.cli import convert as convert_command
from bitnet_onnx.package_format import MANIFEST, POLICY, SCALING
from bitnet_onnx.policy import Precision, Weights
from bitnet_onnx.policy_file import read_policy


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("text") / "text.txt", 600)


@pytest.fixture(scope="module")
def stats(tiny_checkpoint: Callable[[str], Path], text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics with sensitivities of a few precisions."""
    from bitnet_onnx import api

    path = tmp_path_factory.mktemp("stats") / "stats.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "CANDIDATES", (Candidate(Precision(Weights.INT4, 64)), Candidate(Precision(Weights.INT8, 0)))
        )
        patch.setattr(
            module,
            "HEAD_CANDIDATES",
            (Candidate(Precision(Weights.INT6, 0, 16)), Candidate(Precision(Weights.INT8, 0, 16))),
        )
        api.calibrate(
            tiny_checkpoint("tied_mha"), [text], path, api.CollectOptions(tokens=128, window=32), sensitivity_tokens=32
        )
    return path


def _manifest(package: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
    return loaded


def test_what_is_written_is_told_and_nothing_else_is_left(
    run, tiny_checkpoint: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stats.safetensors"
    result = run(
        "calibrate", tiny_checkpoint("tied_mha"), "--text", text, "-o", out, "--tokens", "96", "--window", "32"
    )
    assert (result.status, result.err) == (0, "")
    assert "9 inputs of 15 matrices over 96 tokens" in result.out
    assert list(tmp_path.iterdir()) == [out]
    assert open_statistics(out).sensitivity == ()


def test_calibrated_conversion_says_how_and_is_valid(
    run, tiny_checkpoint: Callable[[str], Path], stats: Path, tmp_path: Path
) -> None:
    source, package = tiny_checkpoint("tied_mha"), tmp_path / "package"
    assert run("convert", source, package, "--weights", "int4", "--calibration", stats).status == 0
    layers = _manifest(package)["layers"]
    assert isinstance(layers, list)
    assert {layer["method"] for layer in layers if layer["role"].startswith("layers.")} == {"gptq"}
    checked = run("validate", package, "--source", source, "--tokens", "1,9")
    assert checked.status == 0
    assert "15 as far from it as the manifest says" in checked.out or "as far from it" in checked.out


def test_inputs_are_scaled_unless_told_not_to(
    run, tiny_checkpoint: Callable[[str], Path], stats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, package = tiny_checkpoint("tied_mha"), tmp_path / "package"
    console = Console(stderr=True, force_terminal=True, width=120)
    monkeypatch.setattr(convert_command, "error_console", lambda: console)
    arguments = ("convert", source, package, "--weights", "int8", "--calibration", stats, "--overwrite")
    result = run(*arguments)
    assert result.status == 0
    scales = load_file(package / SCALING)
    assert f"{len(scales)} inputs of layers were scaled to round better" in result.out
    assert _manifest(package)["summary"]["scaled_inputs"] == len(scales) > 0  # type: ignore[index]
    for part in ("layers.1.mlp.down_proj", "0:00 left"):
        assert part in result.err
    assert run("validate", package, "--source", source, "--tokens", "1,9").status == 0
    scales["layers.0.attn.o_proj"] = np.ones(3, np.float32)
    save_file(scales, package / SCALING)
    result = run("validate", package, "--source", source, "--tokens", "1,9")
    assert (result.status, result.out, len(result.err.splitlines())) == (2, "", 1)
    result = run(*arguments, "--no-scaling")
    assert (result.status, "were scaled" in result.out) == (0, False)
    assert not (package / SCALING).exists()
    assert _manifest(package)["summary"]["scaled_inputs"] == 0  # type: ignore[index]
    assert run("validate", package, "--source", source, "--tokens", "1,9").status == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no-scaling"], "--no-scaling belongs to --calibration"),
        (["--no-scaling", "--to", "safetensors"], "--no-scaling belongs to --to onnx"),
    ],
)
def test_no_scaling_where_nothing_is_scaled(
    options: list[str], message: str, run, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "package", *options)
    assert result.status == 2
    assert message in result.err
    assert not list(tmp_path.iterdir())


def test_bits_choose_a_policy_that_can_be_given_back(
    run, tiny_checkpoint: Callable[[str], Path], stats: Path, tmp_path: Path
) -> None:
    source, package, again = tiny_checkpoint("tied_mha"), tmp_path / "package", tmp_path / "again"
    result = run("convert", source, package, "--calibration", stats, "--bits", "7.4")
    assert result.status == 0
    assert "expected loss" in result.out
    summary = _manifest(package)["summary"]
    assert isinstance(summary, dict)
    assert summary["bits_per_weight"] <= 7.4
    kinds = {layer["weights"] for layer in _manifest(package)["layers"]}
    assert {"int4", "int8"} <= kinds
    assert run("convert", source, again, "--calibration", stats, "--policy", package / POLICY).status == 0
    assert _manifest(again)["layers"] == _manifest(package)["layers"]
    assert (again / "model.onnx.data").read_bytes() == (package / "model.onnx.data").read_bytes()
    assert read_policy(again / POLICY) == read_policy(package / POLICY)


def test_a_loss_chooses_the_fewest_bits(
    run, tiny_checkpoint: Callable[[str], Path], stats: Path, tmp_path: Path
) -> None:
    sizes = []
    for index, loss in enumerate(("1", "0.0005")):
        package = tmp_path / str(index)
        result = run("convert", tiny_checkpoint("tied_mha"), package, "--calibration", stats, "--max-loss", loss)
        assert result.status == 0
        sizes.append(_manifest(package)["summary"]["bits_per_weight"])  # type: ignore[index]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "5"], "need --calibration, made with --sensitivity"),
        (["--bits", "5", "--max-loss", "1", "--calibration", "STATS"], "give one"),
        (["--bits", "5", "--calibration", "STATS", "--weights", "int4"], "--weights is decided by"),
        (["--policy", "STATS", "--bits", "5", "--calibration", "STATS"], "give one"),
        (["--bits", "2", "--calibration", "STATS"], "2 bits a weight are too few"),
        (["--calibration", "NONE"], "no such file; `bitnet-onnx calibrate` makes one"),
        (["--policy", "NONE"], "cannot be read"),
        (["--policy", "STATS"], "not TOML"),
        (["--to", "gguf", "--bits", "4"], "--bits belongs to --to onnx or coreml, not to gguf"),
        (["--method", "gptq", "--weights", "int4"], "gptq needs statistics"),
        (["--method", "rtn", "--weights", "ternary"], "rtn makes weights of 2, 4, 6 or 8 bits"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(
    run,
    tiny_checkpoint: Callable[[str], Path],
    stats: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    named = {"STATS": str(stats), "NONE": str(tmp_path / "none")}
    result = run("convert", tiny_checkpoint("tied_mha"), tmp_path / "out", *(named.get(part, part) for part in options))
    assert result.status == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "0"], "tokens is 0"),
        (["--text", "none.txt"], "none.txt: no such file"),
        (["-o", "no/such/folder/stats"], "the folder no/such/folder does not exist"),
    ],
)
def test_calibration_that_cannot_be_is_refused_in_one_line(
    run, tiny_checkpoint: Callable[[str], Path], text: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = [] if "--text" in options else ["--text", text]
    output = [] if "-o" in options else ["-o", tmp_path / "stats"]
    result = run("calibrate", tiny_checkpoint("tied_mha"), *given, *output, *options)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_statistics_of_another_model_are_refused(
    run, tiny_checkpoint: Callable[[str], Path], stats: Path, tmp_path: Path
) -> None:
    result = run(
        "convert", tiny_checkpoint("biased_mqa"), tmp_path / "out", "--weights", "int4", "--calibration", stats
    )
    assert result.status == 2
    assert "collected on another layer or model" in result.err


def test_a_report_is_written_and_told(
    run, tiny_checkpoint: Callable[[str], Path], text: Path, stats: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the charts of a report need matplotlib")
    source, package, page = tiny_checkpoint("tied_mha"), tmp_path / "package", tmp_path / "report.html"
    assert run("convert", source, package).status == 0
    told = run("report", package, "--source", source, "--text", text, "-o", page, "--calibration", stats)
    assert told.status == 0
    assert "Perplexity" in told.out
    assert page.read_text(encoding="utf-8").count("<svg") == 4
    fields = run("report", package, "--source", source, "--text", text, "--json")
    assert json.loads(fields.out)["layers"]
    nothing = run("report", package, "--source", source, "--text", text)
    assert nothing.status == 2
    assert "give --output, --json or both" in nothing.err
