"""The log of a run holds what is so, whatever happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_runs import quantization_record, step_record

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.monitoring import History, JsonLog, read_log
from bitnet_onnx.training.records import CheckpointRecord, EvaluationRecord, RollbackRecord


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(path: Path) -> list[object]:
    return [line["step"] for line in lines(path) if line["kind"] == "step"]


def begun(path: Path, step: int = 0, every: int = 1) -> JsonLog:
    log = JsonLog(path, {"seed": 7}, every=every)
    log.begin(step)
    return log


def test_each_record_is_there_at_once_with_all_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = begun(path)
    log.step(step_record(1))
    log.evaluation(EvaluationRecord(1, 2.0, 7.4, 100, best=True, seconds=0.1))
    log.checkpoint(CheckpointRecord(1, tmp_path / "elsewhere" / "step-1", best=True, size=10, seconds=0.1))
    log.quantization(quantization_record(1))
    found = lines(path)
    assert [line["kind"] for line in found] == ["run", "step", "evaluation", "checkpoint", "quantization"]
    assert found[0]["settings"] == {"seed": 7}
    assert found[1]["strength"] == [0.01, 0.0]
    assert found[1]["terms"] == {"cross_entropy": 2.0, "distillation": 1.0}
    assert found[3]["path"] == "step-1"
    assert "layers.1.mlp.down_proj.weight" in found[4]["layers"]  # type: ignore[operator]
    log.close()


def test_only_every_so_many_steps_are_logged(tmp_path: Path) -> None:
    log = begun(tmp_path / "log", every=3)
    for step in range(1, 8):
        log.step(step_record(step))
    assert steps(tmp_path / "log") == [3, 6]
    log.close()


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = begun(tmp_path / "log")
    log.step(step_record(1, loss=float("nan")))
    log.close()
    assert lines(tmp_path / "log")[1]["loss"] is None


def test_a_run_that_goes_on_has_no_line_twice_and_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = begun(path)
    for step in range(1, 10):
        log.step(step_record(step))
    log.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "step", "st')
    log = begun(path, 6)
    log.step(step_record(7))
    log.close()
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7]
    assert [line["kind"] for line in lines(path)].count("run") == 1


def test_a_run_from_the_start_writes_anew(tmp_path: Path) -> None:
    log = begun(tmp_path / "log")
    log.step(step_record(1))
    log.close()
    log = begun(tmp_path / "log")
    log.close()
    assert [line["kind"] for line in lines(tmp_path / "log")] == ["run"]


def test_a_step_back_leaves_its_line_also_when_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = begun(path)
    for step in range(1, 9):
        log.step(step_record(step))
    log.rollback(RollbackRecord(9, 4, "loss is nan", 1))
    log.step(step_record(5))
    log.step(step_record(6))
    log.close()
    assert steps(path) == [1, 2, 3, 4, 5, 6]
    begun(path, 5).close()
    assert [line["kind"] for line in lines(path)] == ["run", *["step"] * 4, "rollback", "step"]
    assert History.read(path).rollbacks == [(9, 4, "loss is nan")]


def test_the_result_is_of_the_run_that_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = begun(path)
    log.step(step_record(1))
    log.result({"perplexity": 3.5})
    log.close()
    assert History.read(path).result == {"perplexity": 3.5}
    begun(path, 1).close()
    assert History.read(path).result == {}


def test_half_a_line_at_the_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"kind": "run", "settings": {}}\n{"kind": "st')
    assert [line["kind"] for line in read_log(path)] == ["run"]


@pytest.mark.parametrize(
    "line",
    [
        b"[1]\n",
        b'{"kind": "step"}\n',
        b'{"kind": "run", "settings": 3}\n',
        b'{"kind": "evaluation", "step": 1, "loss": "a", "best": true}\n',
        b'{"kind": "quantization", "step": 1, "layers": [1]}\n',
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b"x" * (1 << 24) + b"xx",
    ],
    ids=["list", "no fields", "settings", "text", "layers", "empty", "deep", "long"],
)
def test_what_is_no_log_is_refused_with_its_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"kind": "run", "settings": {}}\n' + line)
    with pytest.raises(InputError, match="line 2"):
        History.read(path)


def test_a_missing_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        History.read(tmp_path / "none")
