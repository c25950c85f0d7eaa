"""One run at a time in a directory, and what a run that goes on finds there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from tiny_runs import write_config

from bitnet_onnx.errors import InputError
from bitnet_onnx.training._run_lock import run_lock
from bitnet_onnx.training.config_file import read_config
from bitnet_onnx.training.data import kept_tokenizer as kept
from bitnet_onnx.training.data import tokenizer_training
from bitnet_onnx.training.settings import DataSettings
from bitnet_onnx.training.trainer import train

_HOLDER = """
import sys
from pathlib import Path
from bitnet_onnx.training._run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_in_one_directory_are_refused_until_the_first_has_died(tmp_path: Path) -> None:
    settings = read_config(write_config(tmp_path, steps=3))
    settings.output.mkdir()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _HOLDER, str(settings.output)], stdin=-1, stdout=-1, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="run: another run is at work there; wait for its end, or give another"):
            train(settings)
        assert [path.name for path in settings.output.iterdir()] == [".lock"]
        holder.kill()
    with run_lock(settings.output), pytest.raises(InputError, match="another run is at work"):
        train(settings)
    assert train(settings) is not None


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the tokenizers that were trained."""
    sizes: list[int] = []

    def counted(texts: Iterable[str], vocab_size: int) -> Mapping[str, bytes]:
        sizes.append(vocab_size)
        return tokenizer_training.train_tokenizer(texts, vocab_size)

    monkeypatch.setattr(kept, "train_tokenizer", counted)
    return sizes


def _broken(path: Path, change: Callable[[dict[str, str]], None]) -> None:
    fields = json.loads(path.read_text("utf-8"))
    change(fields)
    path.write_text(json.dumps(fields), "utf-8")


def test_a_tokenizer_is_trained_once_for_the_same_texts(
    trained: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, path = tmp_path / "text.txt", tmp_path / "trained-tokenizer.json"
    text.write_text("in the beginning was the word " * 20)
    settings = DataSettings((text,))
    kept.kept_tokenizer(path, settings, write=False)(["in the beginning"], 270)
    assert not path.exists()
    first = kept.kept_tokenizer(path, settings, write=True)(["in the beginning"], 270)
    assert kept.kept_tokenizer(path, settings, write=False)(iter(()), 270) == first
    assert trained == [270, 270]
    # Other texts, or another size, have another.
    kept.kept_tokenizer(path, DataSettings((text,), holdout=0.1), write=False)(["the word"], 270)
    kept.kept_tokenizer(path, settings, write=False)(["the word"], 271)
    assert trained == [270, 270, 270, 271]
    assert not caplog.records
    for change in (
        lambda fields: fields.update({"tokenizer.json": fields["tokenizer.json"].replace("in", "ni")}),
        lambda fields: fields.update({"tokenizer_config.json": 3}),
    ):
        before = path.read_bytes()
        _broken(path, change)
        assert kept.kept_tokenizer(path, settings, write=False)(["in the beginning"], 270) == first
        assert "the tokenizer is trained again" in caplog.text
        caplog.clear()
        path.write_bytes(before)
    path.write_bytes(b"{")
    kept.kept_tokenizer(path, settings, write=False)(["in the beginning"], 270)
    assert "the tokenizer is trained again" in caplog.text


def test_a_run_that_goes_on_takes_its_tokenizer(trained: list[int], tmp_path: Path) -> None:
    settings = read_config(write_config(tmp_path, steps=3))
    for _ in range(2):
        assert train(settings) is not None
    assert trained == [288]
