"""Files for TensorBoard, read by its own format."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from training_runs import quantization_record, step_record

from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.training.monitoring import TensorBoardLog
from bitnet_onnx.training.records import EvaluationRecord, RollbackRecord

pytest.importorskip("tensorboardX", reason="files for TensorBoard need tensorboardX")


def scalars(directory: Path) -> list[dict[tuple[str, int], float]]:
    """The scalars of each file by tag and step, and under ("purge", step) what a file hides."""
    from tensorboardX.proto.event_pb2 import Event

    files = []
    for path in sorted(directory.glob("events*")):
        data, offset = path.read_bytes(), 0
        found: dict[tuple[str, int], float] = {}
        while offset < len(data):
            (length,) = struct.unpack_from("<Q", data, offset)
            event = Event.FromString(data[offset + 12 : offset + 12 + length])
            offset += 16 + length
            if event.HasField("session_log"):
                found["purge", event.step] = 0
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
        files.append(found)
    return files


def test_scalars_by_name_and_step(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path, every=2)
    log.begin(0)
    for step in (1, 2):
        log.step(step_record(step, loss=3.0))
    log.evaluation(EvaluationRecord(2, 1.5, 4.5, 100, best=True, seconds=1))
    log.quantization(quantization_record(0))
    log.quantization(quantization_record(2))
    log.close()
    (found,) = scalars(tmp_path)
    assert found["train/loss", 2] == 3.0
    assert found["train/loss/distillation", 2] == 1.5
    assert found["train/tokens_per_second", 2] == 1024
    assert found["train/strength/1", 2] == 0
    assert found["validation/perplexity", 2] == 4.5
    assert ("train/loss", 1) not in found
    name = "layers.0.attn.q_proj.weight"
    assert ("quantization/flips/" + name, 0) not in found
    assert found["quantization/zeros/" + name, 2] == pytest.approx(0.31002)


def test_a_step_back_hides_what_no_longer_holds(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.begin(0)
    for step in (1, 2, 3, 4, 5):
        log.step(step_record(step))
    log.rollback(RollbackRecord(6, 4, "loss is nan", 1))
    log.step(step_record(5, loss=1.0))
    log.close()
    first, second = scalars(tmp_path)
    assert ("train/loss", 5) in first
    assert not any(tag == "purge" for tag, _ in first)
    assert ("purge", 5) in second
    assert second["train/loss", 5] == 1.0


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'bitnet-onnx\[train\]'"):
        TensorBoardLog(tmp_path)
