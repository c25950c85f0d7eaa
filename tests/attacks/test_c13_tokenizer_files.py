"""Class 13, the files: tokenizers that are missing, broken, too large, or beyond the vocabulary."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import bounded_command
import numpy as np
import pytest
from safetensors.numpy import save
from tiny_checkpoints import write_directory
from tokenizer_bombs import BOMBS
from tokenizers import AddedToken, Tokenizer, models

from bitnet_onnx.converters.checkpoints import _tokenizer_check, _tokenizer_worker, open_checkpoint
from bitnet_onnx.errors import BitnetOnnxError, CheckpointError, UnsupportedError
from bitnet_onnx.limited_process import Limits


def sound(size: int = 4) -> Tokenizer:
    return Tokenizer(models.WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0"))


def refused(
    directory: Path, files: dict[str, bytes], message: str, error: type[BitnetOnnxError] = CheckpointError
) -> None:
    write_directory(directory, save({"w": np.ones(2, np.float32)}), {"vocab_size": 4})
    for name, data in files.items():
        (directory / name).write_bytes(data)
    with open_checkpoint(directory) as checkpoint, pytest.raises(error, match=message) as caught:
        checkpoint.tokenizer()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "a", {}, r"no tokenizer\.json")
    refused(tmp_path / "b", {"tokenizer.model": b"\n\x0e\n\x05<unk>"}, "save it once as a fast", UnsupportedError)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}}',
        b'{"model": {"type": "Evil"}}',
        b'{"model":' * 10_000,
        b"[" * 1_000_000,
        b'{"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}}',
    ],
    ids=range(11),
)
def test_not_a_tokenizer(tmp_path: Path, data: bytes) -> None:
    refused(
        tmp_path,
        {"tokenizer.json": data},
        r"tokenizer\.json: (not a usable tokenizer|not JSON|a JSON object is expected|JSON nests deeper)",
    )


def test_not_utf_8(tmp_path: Path) -> None:
    refused(tmp_path, {"tokenizer.json": b'{"a": "\xff"}'}, "byte 7 is not UTF-8")
    files = {"tokenizer.json": sound().to_str().encode(), "chat_template.jinja": b"{{ \xe9 }}"}
    refused(tmp_path, files, r"chat_template\.jinja: byte 3 is not UTF-8")


def test_too_large(tmp_path: Path) -> None:
    refused(tmp_path / "a", {"tokenizer.json": b" " * 40_000_001}, "40000001 bytes exceed the limit of 40000000")
    files = {"tokenizer.json": sound().to_str().encode(), "chat_template.jinja": b" " * 1_000_001}
    refused(tmp_path / "b", files, "1000001 bytes exceed the limit of 1000000")
    files = {"tokenizer.json": sound().to_str().encode(), "tokenizer_config.json": b" " * 8_000_001}
    refused(tmp_path / "c", files, "8000001 bytes exceed the limit")


def test_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    refused(
        tmp_path / "a", {"tokenizer.json": sound(5).to_str().encode()}, "token 't4' has id 4, but the model has 4 rows"
    )
    tokenizer = sound(4)
    tokenizer.add_special_tokens([AddedToken("[PAD]\n")])
    refused(tmp_path / "b", {"tokenizer.json": tokenizer.to_str().encode()}, r"token '\[PAD\]\\n' has id 4")


def test_empty_vocabulary(tmp_path: Path) -> None:
    data = Tokenizer(models.BPE({}, [])).to_str().encode()
    refused(tmp_path, {"tokenizer.json": data}, "the vocabulary is empty")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_other_json(tmp_path: Path, name: str) -> None:
    files = {"tokenizer.json": sound().to_str().encode()}
    refused(tmp_path, files | {name: b'{"a":' * 5000}, "deeper than 64")
    refused(tmp_path, files | {name: json.dumps([1]).encode()}, "object is expected")


def test_a_panic_of_the_library_is_an_error_and_an_interrupt_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {})

    class Broken:
        error: BaseException = panic("index out of bounds")

        @classmethod
        def from_str(cls, text: str) -> None:
            raise cls.error

    monkeypatch.setattr(_tokenizer_check, "Tokenizer", Broken)
    with pytest.raises(CheckpointError, match="index out of bounds"):
        _tokenizer_check.check_tokenizer(b"{}", "tokenizer.json", 4)
    Broken.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        _tokenizer_check.check_tokenizer(b"{}", "tokenizer.json", 4)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit on the address space")
@pytest.mark.parametrize("name", BOMBS)
def test_the_command_line_with_a_bomb(tmp_path: Path, tiny_checkpoint: Callable[[str], Path], name: str) -> None:
    source = shutil.copytree(tiny_checkpoint("untied_gqa"), tmp_path / "source")
    (source / "tokenizer.json").write_bytes(BOMBS[name])
    assert "tokenizer.json: " in bounded_command.refused(source, tmp_path / "out")


def test_the_command_line_without_a_tokenizer(tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    source = shutil.copytree(tiny_checkpoint("untied_gqa"), tmp_path / "source")
    (source / "tokenizer.json").unlink()
    assert "there is no tokenizer.json" in bounded_command.refused(source, tmp_path / "out")


def test_a_worker_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit(3)", encoding="utf-8")
    monkeypatch.setattr(_tokenizer_check, "_WORKER", worker)
    with pytest.raises(CheckpointError, match="or ends the process"):
        _tokenizer_check.check_foreign_tokenizer(b"{}", "tokenizer.json", 4)


def test_a_worker_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker.py").write_text("import time; time.sleep(600)", encoding="utf-8")
    monkeypatch.setattr(_tokenizer_check, "_WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(_tokenizer_check, "_LIMITS", Limits(megabytes=900, seconds=1))
    with pytest.raises(CheckpointError, match="loading it takes over 1 s"):
        _tokenizer_check.check_foreign_tokenizer(b"{}", "tokenizer.json", 4)


def test_the_worker_describes_in_this_process_too() -> None:
    assert _tokenizer_worker.answer(sound().to_str().encode()) == {"token": "t3", "id": 3}
    assert _tokenizer_worker.answer(Tokenizer(models.BPE({}, [])).to_str().encode()) == {"token": None, "id": None}
    assert "error" in _tokenizer_worker.answer(b"{}")
