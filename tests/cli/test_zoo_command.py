"""`bitnet-onnx zoo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from bitnet_onnx import model_zoo
from bitnet_onnx.cli import zoo as command


def test_the_list(run) -> None:
    out = run("zoo", "list").out
    for manifest in model_zoo.list_models():
        assert manifest.name in out
    assert "sha256" in out


def test_the_list_as_json(run) -> None:
    entries = json.loads(run("zoo", "list", "--json").out)
    assert [entry["name"] for entry in entries] == [manifest.name for manifest in model_zoo.list_models()]
    assert {"name", "summary", "family", "licence", "weights", "origin", "parameters"} <= set(entries[0])
    assert any(entry["verified"] for entry in entries)


@pytest.mark.zoo
def test_pull(run, zoo_model: Path) -> None:
    result = run("zoo", "pull", "SmolLM2-135M-Instruct")
    assert (result.status, result.out) == (0, f"{zoo_model}\n")


def test_unknown_names(refused) -> None:
    assert "did you mean smollm2-135m-instruct" in refused("zoo", "pull", "smollm2-135m")
    assert "zoo list" in refused("zoo", "pull", "\x1b[31m")
    assert "Missing argument 'NAME'" in refused("zoo", "pull")


def test_progress_on_a_terminal(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, progress: model_zoo.Progress) -> Path:
        for stage in ("download", "verify", "extract"):
            progress(stage, 1, 2)
        return Path(name)

    monkeypatch.setattr(command, "error_console", lambda: Console(stderr=True, force_terminal=True))
    monkeypatch.setattr(model_zoo, "pull", pull)
    assert run("zoo", "pull", "x").out == "x\n"
