"""The page of a run."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from training_runs import step_record, write_run

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.monitoring import History, JsonLog, is_run, write_page
from bitnet_onnx.training.monitoring.page import _smooth, _thin

pytest.importorskip("matplotlib", reason="the page of a run needs matplotlib")


def test_the_page_has_the_figures_the_charts_and_the_settings(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    page = write_page(run).read_text("utf-8")
    history = History.read(run / "log.jsonl")
    assert history.best is not None
    assert "step 60 of 60" in page
    assert f"<b>{history.best[1]:.3f}</b>" in page
    assert f"<b>{math.exp(history.best[1]):.2f}</b>" in page
    assert "<b>5.250</b><span class='soft'>packed perplexity" in page
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        "Loss",
        "Terms of the loss",
        "Learning rate",
        "Strength of quantization",
        "Flips",
        "Zeros",
        "Drift of the scale",
        "Signal to quantization noise",
    ]
    # The loss is drawn twice: on linear and on logarithmic axes.
    assert page.count("<svg") == 9
    assert page.count("<td>layers.") == 14
    assert "data.train</td><td class=text>&lt;b&gt;.txt" in page
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", page)
    assert "<script" not in page


def test_a_page_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log.jsonl", {})
    log.begin(0)
    log.close()
    assert "step 0" in write_page(tmp_path).read_text("utf-8")
    log.begin(0)
    log.step(step_record(1, loss=math.nan))
    log.close()
    assert "Learning rate" in write_page(tmp_path).read_text("utf-8")


def test_a_directory_without_a_log_is_no_run(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        write_page(tmp_path)


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        write_page(tmp_path, tmp_path / "none" / "page.html")


def test_smoothing_keeps_a_line_and_its_ends_and_passes_over_gaps() -> None:
    line: list[tuple[float, float]] = [(step, 2.0 * step) for step in range(500)]
    assert [value for _, value in _smooth(line)] == pytest.approx([value for _, value in line])
    broken = [*line[:100], (100.0, math.nan), *line[101:]]
    assert [step for step, _ in _smooth(broken)] == [step for step, _ in line if step != 100]


def test_more_points_than_can_be_seen_become_means() -> None:
    points: list[tuple[float, float]] = [(step, float(step % 13)) for step in range(10_000)]
    thin = _thin(points)
    assert len(thin) <= 800
    assert thin[-1][0] == 9999
    assert all(value == 6 for _, value in thin[:-1])
