"""A run that is killed in the middle, in a process of its own, goes on with the same losses bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")

#: Trains into a folder, appending what each step said to a file, and is killed at a moment.
CHILD = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[3]]
from least_squares import Watch, make_parts, settings
from bitnet_onnx.training import checkpoints
from bitnet_onnx.training.loop import run
from bitnet_onnx.training.settings import LoopSettings, OptimizerName, OptimizerSettings

output, moment = Path(sys.argv[1]), sys.argv[2]
log = output.with_suffix(".log").open("a")

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

class Log(Watch):
    def step(self, record):
        print(record.step, record.loss.hex(), record.gradient_norm.hex(), file=log, flush=True)
        if moment == "at a step" and record.step == 17:
            kill()
        if moment == "waiting" and record.step == 12:
            print("here", flush=True)
            while not output.with_suffix(".go").exists():
                time.sleep(0.01)

    def evaluation(self, record):
        print("evaluation", record.step, record.loss.hex(), file=log, flush=True)

writes, renames = 0, 0
write, rename = checkpoints.write_tensors, Path.rename

def counted_write(path, arrays):
    global writes
    writes += 1
    if moment == "in a checkpoint" and writes == 6:
        path.write_bytes(b"half")
        kill()
    return write(path, arrays)

def counted_rename(self, target):
    global renames
    renames += 1
    if moment == "before it appears" and renames == 3:
        kill()
    return rename(self, target)

checkpoints.write_tensors, Path.rename = counted_write, counted_rename
rule = OptimizerSettings(OptimizerName.TERNARY_MUON, learning_rate=0.02, weight_decay=0.01, warmup=5)
given = settings(output, LoopSettings(30, batch=4, evaluate_every=7, checkpoint_every=10), rule)
outcome = run(given, make_parts(given, Log()))
print(outcome.end, outcome.signal, flush=True)
"""
MOMENTS = ("at a step", "in a checkpoint", "before it appears")


def _child(output: Path, moment: str) -> subprocess.Popen[str]:
    support = str(Path(__file__).parents[1] / "support")
    return subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD, str(output), moment, support],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


def _said(output: Path) -> dict[str, str]:
    """What each step said; where it was taken twice, both times the same."""
    said: dict[str, str] = {}
    for line in output.with_suffix(".log").read_text().splitlines():
        *name, number = line.split() if line.startswith("evaluation") else line.split(maxsplit=1)
        assert said.setdefault(" ".join(name), number) == number, "a step that is repeated is the same"
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("whole") / "run"
    child = _child(output, "never")
    out, err = child.communicate(timeout=60)
    assert (out, child.returncode) == ("finished None\n", 0), err
    return _said(output)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(moment: str, whole: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    child = _child(output, moment)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    child = _child(output, "never")
    out, err = child.communicate(timeout=60)
    assert (out, child.returncode) == ("finished None\n", 0), err
    assert _said(output) == whole
    assert len(whole) == 30 + 5
    left = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert not [name for name in left if name.startswith(".")]
    state = json.loads((output / "checkpoints" / left[-1] / "state.json").read_text())
    assert state["state"]["step"] == 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_from_outside(number: int, whole: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    child = _child(output, "waiting")
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    child.send_signal(number)
    output.with_suffix(".go").touch()
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert out == f"stopped {number}\n"
    assert (output / "checkpoints" / "step-00000013").is_dir()
    said = _said(output)
    assert len(said) == 13 + 1
    assert said.items() <= whole.items()
