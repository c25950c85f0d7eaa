"""`bitnet-onnx evaluate`, and `--activations` of the commands that run a package."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import bitnet_onnx
from bitnet_onnx.cli import _progress
from bitnet_onnx.runtime import load

TEXT = "In the beginning God created the heaven and the earth.\n" * 3
QUESTION = {"query": "The sky is", "choices": ["blue", "green"], "gold": 0}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n" + json.dumps(QUESTION))
    return path


def test_tables(run, tiny_package: Path, tiny_checkpoint: Callable[[str], Path], text: Path, tasks: Path) -> None:
    arguments = ("evaluate", tiny_package, "--text", text, "--window", "32")
    plain = run(*arguments)
    assert (plain.status, plain.err) == (0, "")
    rule, head, line = plain.out.splitlines()
    assert rule.startswith("windows of 32 tokens without a beginning token, one after the other")
    assert head.split() == ["text", "tokens", "scored", "perplexity", "bits", "a", "byte"]
    assert line.split()[:2] == ["text.txt", "155"]
    source = tiny_checkpoint("untied_gqa")
    found = run(*arguments, "--text", text, "--reference", source, "--tasks", tasks, "--tokens", "64")
    assert (found.status, found.err) == (0, "")
    assert f"against {source} (converted for this: float32)" in found.out
    assert found.out.count("text.txt") == 4
    assert sum(line.startswith("all ") for line in found.out.splitlines()) == 2
    assert "tasks.jsonl" in found.out
    assert "reference" in found.out.splitlines()[-1]
    assert max(map(len, found.out.splitlines()[1:4])) <= 80


def test_json(run, tiny_package: Path, text: Path, tasks: Path) -> None:
    arguments = ("--text", text, "--window", "32", "--tasks", tasks, "--reference", tiny_package)
    result = run("evaluate", tiny_package, *arguments, "--stride", "16", "--threads", "1", "--json")
    assert (result.status, result.err) == (0, "")
    found = json.loads(result.out)
    assert list(found) == ["package", "reference", "rule", "texts", "total", "tasks", "tool_version", "runtime"]
    digest = hashlib.sha256((tiny_package / "engine.onnx").read_bytes())
    digest.update((tiny_package / "model.onnx.data").read_bytes())
    manifest = json.loads((tiny_package / "bitnet_onnx.json").read_text())
    assert found["package"] == {
        "path": str(tiny_package),
        "name": manifest["source"]["name"],
        "source_sha256": manifest["source"]["sha256"],
        "sha256": digest.hexdigest(),
        "bits_per_weight": manifest["summary"]["bits_per_weight"],
        "activations": "as packaged",
        "converted": "",
    }
    assert found["reference"] == found["package"]
    assert found["rule"] == {
        "window": 32,
        "tokens": None,
        "stride": 16,
        "context": None,
        "beginning_token": False,
        "rule": "windows of 32 tokens without a beginning token, every 16 tokens, tokens scored once, in the first "
        "window that holds them",
    }
    (one,) = found["texts"]
    assert list(one) == [
        "name",
        "windows",
        "tokens",
        "bytes",
        "nats",
        "nats_error",
        "perplexity",
        "bits_per_byte",
        "comparison",
    ]
    assert list(one["comparison"]) == [
        "perplexity",
        "bits_per_byte",
        "difference",
        "difference_error",
        "perplexity_ratio",
        "divergence",
        "divergence_error",
        "divergence_p99",
        "divergence_max",
        "agreement",
    ]
    assert {**found["total"], "name": str(text)} == one
    (task,) = found["tasks"]
    assert list(task) == [
        "name",
        "questions",
        "accuracy",
        "accuracy_normalized",
        "reference_accuracy",
        "reference_accuracy_normalized",
        "agreement",
    ]
    assert list(task["accuracy"]) == ["correct", "value", "low", "high"]
    assert found["tool_version"]
    assert found["runtime"] in {"operator library", "function bodies"}


def test_only_what_was_asked_for(run, tiny_package: Path, tasks: Path) -> None:
    found = json.loads(run("evaluate", tiny_package, "--tasks", tasks, "--json").out)
    assert (found["rule"], found["texts"], found["total"], found["reference"]) == (None, [], None, None)
    shown = run("evaluate", tiny_package, "--tasks", tasks)
    assert shown.out.splitlines()[0].split()[0] == "questions"


def test_progress_on_a_terminal(
    run, tiny_package: Path, text: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(_progress, "error_console", lambda: terminal)
    result = run("evaluate", tiny_package, "--text", text, "--window", "32", "--tasks", tasks)
    assert result.status == 0
    assert "tasks.jsonl" in screen.getvalue()
    assert "2/2" in screen.getvalue()


def test_bad_input(refused, tiny_package: Path, text: Path, tmp_path: Path) -> None:
    assert "nothing to evaluate" in refused("evaluate", tiny_package)
    assert "no such directory" in refused("evaluate", tmp_path / "none", "--text", text)
    assert "none.txt: cannot be read" in refused("evaluate", tiny_package, "--text", tmp_path / "none.txt")
    assert "do not fill a window of 256" in refused("evaluate", tiny_package, "--text", text)
    assert "stride is 300" in refused("evaluate", tiny_package, "--text", text, "--stride", "300")
    assert "exclude each other" in refused(
        "evaluate", tiny_package, "--text", text, "--stride", "30", "--tokens", "256"
    )
    assert "does not fit the model's context of 512" in refused(
        "evaluate", tiny_package, "--text", text, "--window", "512", "--bos"
    )
    (tmp_path / "empty").write_bytes(b"")
    assert "is empty" in refused("evaluate", tiny_package, "--text", tmp_path / "empty")
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 100)
    assert "byte 3 is not UTF-8" in refused("evaluate", tiny_package, "--text", tmp_path / "latin")
    (tmp_path / "tasks").write_text('{"query": "q"}')
    assert "line 1: has none of the fields choices" in refused("evaluate", tiny_package, "--tasks", tmp_path / "tasks")
    arguments = ("evaluate", tiny_package, "--text", text, "--window", "32")
    assert "neither an existing path nor a model of the zoo" in refused(*arguments, "--reference", "nonesuch")
    assert "'5' is not one of" in refused(*arguments, "--activations", "5")


def test_the_python_function(tiny_package: Path, text: Path, run) -> None:
    options = bitnet_onnx.QualityOptions(bitnet_onnx.WindowRule(32))
    found = bitnet_onnx.evaluate(tiny_package, texts=[text], reference=tiny_package, options=options)
    assert isinstance(found, bitnet_onnx.Quality)
    arguments = ("--text", text, "--window", "32", "--reference", tiny_package)
    assert json.loads(run("evaluate", tiny_package, *arguments, "--json").out) == json.loads(
        json.dumps(found.as_dict())
    )


def test_activations(run, refused, tiny_package: Path, operator_library: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(list(range(100, 130))))
    arguments = ("infer", tiny_package, "--ids-file", ids, "--max-new-tokens", "4", "--json")
    for name, bits in (("float", 0), ("8", 8), ("16", 16)):
        found = json.loads(run(*arguments, "--activations", name).out)
        model = load(tiny_package, activation_bits=bits)
        parameters = bitnet_onnx.SamplingParameters(max_new_tokens=4)
        assert found["ids"] == list(model.generate(list(range(100, 130)), parameters).ids)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": [100, 101]}\n')
    out = tmp_path / "answers.jsonl"
    batch = ("infer", tiny_package, "--batch", tmp_path / "prompts.jsonl", "--out", out, "--max-new-tokens", "2")
    assert run(*batch, "--activations", "float").status == 0
    assert run(*batch, "--activations", "float").err.startswith("0 lines answered")
    # Answers under other activations are other answers.
    assert refused(*batch).startswith("error: ")
