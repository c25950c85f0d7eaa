"""Class 14: pickles, `.bin`, `.pt` and code named by `auto_map` are refused or ignored, and never executed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bounded_command import refused, run_bounded
from safetensors.numpy import save
from tiny_checkpoints import CONFIG, write_directory

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import CheckpointError, UnsupportedError

NAMES = (
    "pytorch_model.bin",
    "consolidated.00.pth",
    "model.pt",
    "model.ckpt",
    "weights.pkl",
    "weights.pickle",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.nemo",
)


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._file,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """The file that must never appear; that it would is tried out first."""
    file = tmp_path / "executed"
    pickle.loads(pickle.dumps(Canary(file)))
    assert file.exists(), "the canary does not sing"
    file.unlink()
    return file


def poison(directory: Path, canary: Path) -> None:
    """Code of every kind that a loader might execute beside the weights."""
    code = f"open({str(canary)!r}, 'w').close()\n"
    for name in ("evil.py", "__init__.py", "configuration_evil.py", "tokenization_evil.py", "setup.py", "conftest.py"):
        (directory / name).write_text(code)
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "evil.Tokenizer"})
    )
    for name in ("training_args.bin", "optimizer.pt"):
        (directory / name).write_bytes(pickle.dumps(Canary(canary)))


@pytest.mark.parametrize("name", NAMES)
def test_formats_that_run_code(tmp_path: Path, canary: Path, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    (source / name).write_bytes(pickle.dumps(Canary(canary)))
    for path in (source, source / name):
        with pytest.raises(UnsupportedError, match=f"'{name}' is not read, .* convert it to safetensors"):
            open_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_a_pickle_under_another_name(tmp_path: Path, canary: Path, name: str) -> None:
    source = write_directory(tmp_path / "source", b"")
    (source / "model.safetensors").unlink()
    (source / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(CheckpointError, match=r"exceeds the limit|not a GGUF file"):
        open_checkpoint(source)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_the_command_line(tmp_path: Path, canary: Path, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    poison(source, canary)
    (source / name).write_bytes(pickle.dumps(Canary(canary)))
    assert "may run code when loaded" in refused(source, tmp_path / "out")
    assert not canary.exists()


def test_code_beside_sound_weights_is_never_run(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, canary: Path
) -> None:
    """The conversion succeeds: `auto_map` and pickles beside safetensors are as if they were not there."""
    source = shutil.copytree(tiny_checkpoint("untied_gqa"), tmp_path / "source")
    poison(source, canary)
    ended = run_bounded("convert", source, tmp_path / "package", folder=source)
    assert ended.status == 0, ended.err
    assert not canary.exists()
    assert not list((tmp_path / "package").glob("*.py"))


def test_code_instead_of_a_known_family_is_refused(tmp_path: Path, canary: Path) -> None:
    source = write_directory(tmp_path / "source", save({"w": np.ones(2, np.float32)}), {"model_type": "evil"})
    poison(source, canary)
    assert "model_type" in refused(source, tmp_path / "out")
    assert not canary.exists()
