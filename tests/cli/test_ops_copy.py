"""`bitnet-onnx ops --copy` and `--verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_copy_and_verify(run, operator_library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ops"
    copied = run("ops", "--copy", folder)
    assert copied.status == 0
    assert set(copied.out.splitlines()) == {f"written: {path}" for path in folder.iterdir()}
    verified = run("ops", "--verify", folder)
    assert verified.status == 0
    assert f"intact: {folder / operator_library.name}" in verified.out


def test_for_programs(run, operator_library: Path, tmp_path: Path) -> None:
    report = json.loads(run("ops", "--copy", tmp_path, "--json").out)
    assert report["directory"] == str(tmp_path)
    assert {file["name"] for file in report["files"]} == {path.name for path in tmp_path.iterdir()}
    assert all(set(file) == {"name", "size", "sha256"} for file in report["files"])
    assert json.loads(run("ops", "--verify", tmp_path, "--json").out)["directory"] == str(tmp_path)


def test_what_is_in_the_way(run, refused, operator_library: Path, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("mine")
    assert "LICENSE exists with other content" in refused("ops", "--copy", tmp_path)
    assert run("ops", "--copy", tmp_path, "--overwrite").status == 0
    (tmp_path / "bitnet_ops.h").write_text("mine")
    assert "bitnet_ops.h: its content is not that of SHA256SUMS" in refused("ops", "--verify", tmp_path)


@pytest.mark.parametrize(
    "options", [["--path", "--copy", "x"], ["--copy", "x", "--verify", "x"], ["--overwrite"], ["--verify", "absent"]]
)
def test_options_that_do_not_go_together(
    refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("ops", *options)
    assert list(tmp_path.iterdir()) == []
