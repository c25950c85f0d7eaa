"""Class 3 for training: configurations and checkpoints that are not what they say, held to 10 s and 1 GB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bounded_command import run_bounded_python

from bitnet_onnx.training._run_state import RunState
from bitnet_onnx.training.checkpoints import Checkpoints
from bitnet_onnx.training.optimizers.adamw import AdamW
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerSettings

READ = """
import sys
from pathlib import Path
from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.training.checkpoints import Checkpoints
from bitnet_onnx.training.config_file import read_config
from bitnet_onnx.training.optimizers.adamw import AdamW
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerSettings
for path in sys.argv[2:]:
    try:
        if sys.argv[1] == "config":
            read_config(path)
        else:
            store = ParameterStore({"w": (4, 4)})
            Checkpoints(Path(path), settings={}).restore(store, AdamW(store, OptimizerSettings(), threads=1))
        print("taken")
    except BitnetOnnxError as error:
        print(error.exit_status, error)
"""
MINIMUM = b'output = "o"\n[model]\nsource = "smollm2-135m-instruct"\n[loop]\nsteps = 5\n[data]\ntrain = '
DOTS = b".".join([b"a"] * 400_000)
CONFIGS = {
    "a file of a terabyte": (None, "bytes, above the limit of 1048576"),
    "depth": (MINIMUM + b"[" * 500_000 + b"]" * 500_000, "not TOML"),
    "a key of many parts": (DOTS + b" = 1", "dots, above the limit of 64"),
    "tables of many parts": (b"[" + DOTS + b"]", "dots, above the limit of 64"),
    "a huge integer": (b"seed = " + b"9" * 1_000_000, "not TOML"),
    "a huge float": (MINIMUM + b'"c"\nlength = 1e999', "data.length is inf: expected a whole number"),
    "a long key": (b'"' + b"k" * 1_000_000 + b'" = 1', "unknown key 'kkkk"),
    "a long name": (MINIMUM.replace(b"smollm2", b"s" * 1_000_000) + b'"c"', "model.source is 'ssss"),
    "many files": (
        MINIMUM + b"[" + b'"c",' * 200_000 + b"]",
        "data.train has 200000 entries, above the limit of 10000",
    ),
    "a device": (MINIMUM + b'"/dev/zero"', "data.train names /dev/zero: no such file"),
    "a path with a zero": (MINIMUM + rb'"a\u0000b"', "data.train is 'a\\x00b': expected a string"),
    "nobody's home": (MINIMUM + b'"~nobody-of-that-name/c"', "expected a path that a file system takes"),
    "not UTF-8": (b"output = '\xff\xfe'", "not TOML: 'utf-8' codec"),
    "a key twice": (b"seed = 1\nseed = 2", "not TOML: Cannot overwrite a value"),
}
STATES = {
    "depth": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON nests deeper than 64 levels"),
    "a key twice": (b'{"format": "a", "format": "b"}', "key 'format' appears twice"),
    "a huge integer": (b'{"format": ' + b"9" * 1_000_000 + b"}", "integer '999"),
    "not finite": (b'{"format": NaN}', "NaN is not JSON"),
    "a terabyte": (None, "exceed the limit of 8000000"),
}


def _refused(kind: str, paths: list[Path], folder: Path) -> list[str]:
    """What one process says of all: together they have what one alone may cost."""
    folder.mkdir()
    ended = run_bounded_python("-c", READ, kind, *paths, folder=folder)
    assert ended.status == 0, ended.err[:2000]
    assert list(folder.iterdir()) == []
    lines = ended.out.splitlines()
    assert len(lines) == len(paths)
    assert all(line.startswith("2 ") and len(line) < 1200 for line in lines)
    return lines


def _write(path: Path, content: bytes | None) -> None:
    with path.open("wb") as file:
        if content is None:
            file.truncate(1 << 40)
        else:
            file.write(content)


def test_configurations_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.toml" for index in range(len(CONFIGS))]
    for path, (content, _) in zip(paths, CONFIGS.values(), strict=True):
        _write(path, content)
    for line, name in zip(_refused("config", paths, tmp_path / "empty"), CONFIGS, strict=True):
        assert CONFIGS[name][1] in line, name


def _header_beyond_the_file(path: Path) -> None:
    data = bytearray((path / "values.safetensors").read_bytes())
    data[:8] = (1 << 62).to_bytes(8, "little")
    (path / "values.safetensors").write_bytes(data)


def test_checkpoints_are_refused(tmp_path: Path) -> None:
    store = ParameterStore({"w": (4, 4)})
    store.value("w")[...] = np.eye(4)
    optimizer = AdamW(store, OptimizerSettings(), threads=1)
    runs, messages = [], []
    for index, (content, message) in enumerate(STATES.values()):
        runs.append(tmp_path / str(index))
        messages.append(message)
        _write(Checkpoints(runs[-1], settings={}).save(store, optimizer, RunState(3)).path / "state.json", content)
    runs.append(tmp_path / "header")
    messages.append("header of 4611686018427387904 bytes exceeds the limit")
    _header_beyond_the_file(Checkpoints(runs[-1], settings={}).save(store, optimizer, RunState(3)).path)
    for line, message in zip(_refused("checkpoint", runs, tmp_path / "empty"), messages, strict=True):
        assert message in line
        assert "remove that folder to begin again" in line
