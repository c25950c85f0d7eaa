"""`bitnet-onnx train` that is killed goes on with the same losses, bit for bit, and leaves the same model."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import write_config

from bitnet_onnx.training.config_file import read_config
from bitnet_onnx.training.trainer import train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")

_STEPS = 30
_PATIENCE = 60


def _numbers(output: Path) -> list[tuple[object, ...]]:
    """What the log says of each step and evaluation, but for times."""
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [
        (line["kind"], line["step"], line["loss"], line.get("gradient_norm"))
        for line in lines
        if line["kind"] in {"step", "evaluation"}
    ]


def _digest(output: Path) -> str:
    return hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest()


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=_STEPS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(replace(read_config(config), output=whole))
    command = [sys.executable, "-P", "-m", "bitnet_onnx", "train", str(config), "--output", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, ends = killed / "log.jsonl", time.monotonic() + _PATIENCE
    # Between two checkpoints, of which there is one every 4 steps.
    while not log.exists() or log.read_bytes().count(b'"kind": "step"') < 6:
        assert time.monotonic() < ends
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=_PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "model").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    assert done.returncode == 0, done.stderr
    numbers = _numbers(whole)
    assert [step for kind, step, *_ in numbers if kind == "step"] == list(range(1, _STEPS + 1))
    assert _numbers(killed) == numbers
    assert _digest(killed) == _digest(whole)
