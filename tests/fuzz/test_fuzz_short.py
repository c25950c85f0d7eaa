"""Inputs that once broke something, and a few thousand new ones where Atheris is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUPPORT = HERE.parent / "support"
TARGETS = ("gguf", "safetensors", "packing")
CORPUS = sorted(path for path in (HERE / "corpus").rglob("*") if path.is_file())


def load(target: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[bytes], None], Callable[[], list[bytes]]]:
    monkeypatch.syspath_prepend(str(HERE))
    module = importlib.import_module(f"fuzz_{target}")
    return module.run, module.seeds


@pytest.mark.parametrize("path", CORPUS, ids=[f"{path.parent.name}/{path.name}" for path in CORPUS])
def test_what_once_broke_something(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = load(path.parent.name, monkeypatch)
    run(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_the_seeds_are_sound_and_their_ruins_are_refused(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Atheris: each seed whole, and cut at every sixteenth byte."""
    run, seeds = load(target, monkeypatch)
    for seed in seeds():
        for size in range(len(seed), -1, -16):
            run(seed[:size])


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="Atheris is not installed: it has wheels for Linux only"
)
@pytest.mark.parametrize("target", TARGETS)
def test_a_few_thousand_new_inputs(target: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE), str(SUPPORT)))}
    corpus = str(tmp_path / "corpus")
    options = ["-runs=3000", "-seed=1", "-max_len=8192", "-timeout=10", "-rss_limit_mb=1024", "-verbosity=0"]
    # libFuzzer goes by the peak of its process, which on Linux begins with the memory of the process that starts it.
    small_parent = ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [
        *small_parent,
        sys.executable,
        "-P",
        "-m",
        f"fuzz_{target}",
        *options,
        f"-artifact_prefix={tmp_path}/",
        corpus,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
