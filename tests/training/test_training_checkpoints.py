"""Checkpoints: what is kept, what is verified, and what is taken when one is broken."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from least_squares import WIDTH, new_store
from safetensors.numpy import load_file

from bitnet_onnx.errors import CheckpointError, TrainingError
from bitnet_onnx.training import checkpoints
from bitnet_onnx.training._run_state import RunState
from bitnet_onnx.training.checkpoints import Checkpoints
from bitnet_onnx.training.optimizers.adamw import AdamW
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerSettings


@pytest.fixture
def trained() -> tuple[ParameterStore, AdamW]:
    store = new_store()
    random = np.random.default_rng(0)
    for name in store:
        store.gradient(name)[...] = random.normal(size=store.shapes[name])
    optimizer = AdamW(store, OptimizerSettings(), threads=1)
    optimizer.step(0.1)
    return store, optimizer


def _state(step: int, loss: float | None = None) -> RunState:
    return RunState(step, step, 24 * step, {"taken": step, "order": [1, 2.5, "x"]}, loss, 0 if loss is None else step)


def _empty() -> tuple[ParameterStore, AdamW]:
    store = new_store()
    store.values[:] = 0
    return store, AdamW(store, OptimizerSettings(), threads=1)


def test_all_comes_back(trained: tuple[ParameterStore, AdamW], tmp_path: Path) -> None:
    files = Checkpoints(tmp_path, settings={"seed": "1"})
    state = dataclasses.replace(_state(7, 1 / 3), waiting=2, rollbacks=1)
    record = files.save(*trained, state, best=True)
    assert record.path == tmp_path / "checkpoints" / "step-00000007"
    assert record.size == sum(path.stat().st_size for path in record.path.iterdir())
    store, optimizer = _empty()
    assert files.restore(store, optimizer) == state
    assert store.values.tobytes() == trained[0].values.tobytes()
    for name, array in trained[1].state().items():
        assert optimizer.state()[name].tobytes() == array.tobytes()
    assert optimizer.steps == 7
    assert files.settings() == {"seed": "1"}
    values = load_file(record.path / "values.safetensors")
    assert {name: value.shape for name, value in values.items()} == {"w": (WIDTH, WIDTH), "b": (WIDTH,)}
    np.testing.assert_array_equal(values["w"], trained[0].value("w"))
    other, _ = _empty()
    assert files.read_values(record.path, other) == state
    assert other.values.tobytes() == trained[0].values.tobytes()


def test_the_last_few_and_the_best_stay(trained: tuple[ParameterStore, AdamW], tmp_path: Path) -> None:
    files = Checkpoints(tmp_path, settings={}, keep=2)
    for step in range(1, 8):
        files.save(*trained, _state(step), best=step in {2, 3})
    assert [path.name for path in files.paths()] == ["step-00000003", "step-00000006", "step-00000007"]
    assert files.best() == files.paths()[0]
    # A run that went back: what came after is of another run.
    files.save(*trained, _state(6), best=False)
    assert [path.name for path in files.paths()] == ["step-00000003", "step-00000006"]
    files.save(*trained, _state(7), best=True)
    assert files.best() == files.paths()[-1]
    assert [path.name for path in files.paths()] == ["step-00000006", "step-00000007"]


def test_there_may_be_none(tmp_path: Path) -> None:
    files = Checkpoints(tmp_path / "run", settings={})
    assert (files.paths(), files.best(), files.settings(), files.restore(*_empty())) == ([], None, None, None)
    assert not (tmp_path / "run").exists()


def _truncate(path: Path) -> None:
    data = (path / "values.safetensors").read_bytes()
    (path / "values.safetensors").write_bytes(data[:-4])


def _flip_value(path: Path) -> None:
    data = bytearray((path / "values.safetensors").read_bytes())
    data[-5] ^= 1
    (path / "values.safetensors").write_bytes(data)


def _flip_moment(path: Path) -> None:
    data = bytearray((path / "optimizer.safetensors").read_bytes())
    data[-200] ^= 64
    (path / "optimizer.safetensors").write_bytes(data)


def _without_file(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()


def _other_tensors(path: Path) -> None:
    shutil.copy(path / "values.safetensors", path / "optimizer.safetensors")
    _change(
        path, lambda fields: fields["files"].update({"optimizer.safetensors": fields["files"]["values.safetensors"]})
    )


def _change(path: Path, edit) -> None:  # type: ignore[no-untyped-def]
    fields = json.loads((path / "state.json").read_text())
    edit(fields)
    (path / "state.json").write_text(json.dumps(fields))


BROKEN = {
    "truncated": (_truncate, "values.safetensors: .* bytes, expected"),
    "a bit of a value": (_flip_value, "values.safetensors: its checksum"),
    "a bit of a moment": (_flip_moment, "optimizer.safetensors: its checksum"),
    "a missing file": (_without_file, "optimizer.safetensors: cannot be opened"),
    "the tensors of another": (_other_tensors, "tensor 'b' has no place in this run"),
    "no state": (lambda path: (path / "state.json").unlink(), "state.json: no such file"),
    "no JSON": (lambda path: (path / "state.json").write_text("{"), "state.json: not JSON"),
    "another format": (lambda path: _change(path, lambda f: f.update(format="x")), "format is 'x'"),
    "another step": (lambda path: _change(path, lambda f: f["state"].update(step=8)), "state.step is 8"),
    "a negative step": (lambda path: _change(path, lambda f: f["state"].update(step=-1)), "state.step is -1"),
    "a field of no use": (lambda path: _change(path, lambda f: f["state"].update(x=1)), "state must have exactly step"),
    "a loss that is none": (lambda path: _change(path, lambda f: f["state"].update(best_loss="x")), "state.best_loss"),
    "no files": (lambda path: _change(path, lambda f: f.pop("files")), "files must be exactly"),
    "a file without a size": (lambda path: _change(path, lambda f: f["files"]["values.safetensors"].clear()), "size"),
    "settings that are none": (lambda path: _change(path, lambda f: f.update(settings=[1])), "settings must be"),
    "best of no kind": (lambda path: _change(path, lambda f: f.update(best=1)), "best is 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_is_named_and_the_one_before_is_taken(
    name: str, trained: tuple[ParameterStore, AdamW], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, message = BROKEN[name]
    files = Checkpoints(tmp_path, settings={})
    files.save(*trained, _state(5))
    before = trained[0].values.copy()
    trained[1].step(0.1)
    damage(files.save(*trained, _state(9)).path)
    store, optimizer = _empty()
    with caplog.at_level(logging.WARNING):
        assert files.restore(store, optimizer) == _state(5)
    (record,) = caplog.records
    assert "step-00000009" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.getMessage().endswith("the checkpoint before it is taken")
    np.testing.assert_array_equal(store.values, before)
    assert optimizer.steps == 5
    shutil.rmtree(files.paths()[0])
    with pytest.raises(CheckpointError, match=message) as raised:
        files.restore(store, optimizer)
    assert "\n" not in str(raised.value)
    assert "remove that folder to begin again" in str(raised.value)


def test_another_model_is_refused(trained: tuple[ParameterStore, AdamW], tmp_path: Path) -> None:
    files = Checkpoints(tmp_path, settings={})
    files.save(*trained, _state(5))
    store = ParameterStore({"w": (WIDTH, WIDTH), "b": (WIDTH + 1,)})
    with pytest.raises(CheckpointError, match=r"tensor b is F32 \[12\], expected F32 \[13\]"):
        files.restore(store, AdamW(store, OptimizerSettings(), threads=1))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_refuses_is_one_line_and_costs_nothing(
    number: int, trained: tuple[ParameterStore, AdamW], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Checkpoints(tmp_path, settings={})
    files.save(*trained, _state(5))

    def refuse(path: Path, *_: object) -> None:
        path.write_bytes(b"some")
        raise OSError(number, "No room" if number == errno.ENOSPC else "Not yours")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_tensors", refuse)
        with pytest.raises(TrainingError, match="step-00000009: the checkpoint cannot be written: No") as raised:
            files.save(*trained, _state(9))
    assert "\n" not in str(raised.value)
    assert ("bytes needed" in str(raised.value)) == (number == errno.ENOSPC)
    assert [path.name for path in files.folder.iterdir()] == ["step-00000005"]
    assert files.restore(*_empty()) == _state(5)


def test_what_a_killed_run_left_is_put_in_order(trained: tuple[ParameterStore, AdamW], tmp_path: Path) -> None:
    files = Checkpoints(tmp_path, settings={})
    files.save(*trained, _state(5))
    (files.folder / ".step-00000006.partial").mkdir()
    (files.folder / ".step-00000006.partial" / "values.safetensors").write_bytes(b"half")
    (files.folder / "step-00000005").rename(files.folder / ".step-00000005.replaced.partial")
    files.save(*trained, _state(7))
    assert sorted(path.name for path in files.folder.iterdir()) == ["step-00000005", "step-00000007"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits of file sizes")
def test_a_file_that_the_system_cuts_short(trained: tuple[ParameterStore, AdamW], tmp_path: Path) -> None:
    import resource

    files = Checkpoints(tmp_path, settings={})
    files.save(*trained, _state(5))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        with pytest.raises(
            TrainingError, match=r"step-00000009: .*: File too large \(\d+ bytes needed, \d+ free\); free"
        ):
            files.save(*trained, _state(9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in files.folder.iterdir()] == ["step-00000005"]
    assert files.restore(*_empty()) == _state(5)
