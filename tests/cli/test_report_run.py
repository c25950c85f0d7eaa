"""`bitnet-onnx report RUN`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import write_run

pytest.importorskip("matplotlib", reason="the page of a run needs matplotlib")


def test_the_page_of_a_run_is_written_again(run: Callable[..., object], tmp_path: Path) -> None:
    write_run(tmp_path)
    result = run("report", tmp_path)
    assert result.status == 0  # type: ignore[attr-defined]
    assert "written to" in result.err  # type: ignore[attr-defined]
    assert "<svg" in (tmp_path / "report.html").read_text("utf-8")
    assert run("report", tmp_path, "-o", tmp_path / "other.html").status == 0  # type: ignore[attr-defined]
    assert (tmp_path / "other.html").read_bytes() == (tmp_path / "report.html").read_bytes()


def test_what_is_for_packages_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path)
    assert "is a training run: only --output" in refused("report", tmp_path, "--json")
    assert "is a training run: only --output" in refused("report", tmp_path, "--source", "x", "--text", "y")


def test_a_package_needs_its_source(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "needs --source and --text" in refused("report", tmp_path)


def test_a_broken_log_is_told_by_its_line(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "step"}\n')
    assert "log.jsonl line 1: not a record of a run" in refused("report", tmp_path)
