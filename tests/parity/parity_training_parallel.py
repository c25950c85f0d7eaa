"""Data parallel training by torch's gloo: two processes equal one with twice the batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from tiny_runs import write_config

WORKER = """
import sys
from pathlib import Path

import numpy as np

from bitnet_onnx.training.parallel import open_collective
from bitnet_onnx.training.parameters import ParameterStore

STEPS, BATCH, DIES = 8, 4, len(sys.argv) > 2
random = np.random.default_rng(0)
inputs = random.normal(size=(STEPS, BATCH, 32)).astype(np.float32)
targets = random.normal(size=(STEPS, BATCH, 8)).astype(np.float32)
with open_collective() as collective:
    store = ParameterStore({"weight": (8, 32)}, path=Path(sys.argv[1] + f".store{collective.rank}"))
    # Only rank 0 has a start: the others take it.
    if collective.rank == 0:
        store.value("weight")[:] = random.normal(size=(8, 32))
    collective.broadcast(store.values)
    losses = []
    for step in range(STEPS):
        if DIES and step == 3 and collective.rank == 1:
            sys.exit(7)
        store.gradients[:] = 0
        loss, share = 0.0, BATCH // collective.size
        for row in range(collective.rank * share, (collective.rank + 1) * share):
            output = np.tanh(store.value("weight") @ inputs[step, row])
            error = output - targets[step, row]
            loss += float((error**2).sum()) / BATCH
            store.gradient("weight")[:] += 2 / BATCH * np.outer(error * (1 - output**2), inputs[step, row])
        collective.sum(store.gradients)
        losses += collective.sum_scalars([loss])
        store.values[:] -= 0.05 * store.gradients
    collective.barrier()
    np.savez(sys.argv[1] + f".rank{collective.rank}.npz", values=store.values, losses=losses)
"""


def _run(output: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = output.with_suffix(".py")
    script.write_text(WORKER)
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    return subprocess.run(
        [sys.executable, "-P", *launch, str(script), str(output), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    for processes in (1, 2):
        result = _run(tmp_path / f"of{processes}", processes)
        assert result.returncode == 0, result.stderr
    alone = np.load(tmp_path / "of1.rank0.npz")
    first, second = (np.load(tmp_path / f"of2.rank{rank}.npz") for rank in range(2))
    assert np.array_equal(first["values"], second["values"])
    assert np.array_equal(first["losses"], second["losses"])
    assert np.abs(first["values"] - alone["values"]).max() < 1e-5
    assert np.abs(first["losses"] - alone["losses"]).max() < 1e-5
    assert alone["losses"][-1] != alone["losses"][0]


def _train(config: Path, processes: int) -> list[float]:
    output = config.parent / f"of{processes}"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "bitnet_onnx"]
    result = subprocess.run(
        [sys.executable, "-P", *launch, "train", str(config), "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("; perplexity ") == 1
    assert (output / "model" / "model.safetensors").exists()
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] in {"step", "evaluation"}]


def test_a_real_run_has_the_losses_of_one_process(tmp_path: Path) -> None:
    # Floats: a code that flips by a rounding of the last bit would be as right, and change all that follows.
    config = write_config(tmp_path, weights="float")
    alone, both = _train(config, 1), _train(config, 2)
    assert len(alone) == 15
    assert np.abs(np.array(alone) - both).max() < 1e-5
    assert alone[-1] < alone[0] - 1


def test_one_process_tells_what_none_can_do(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("threads = 1", "threads = 1\nmemory = 1"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bitnet_onnx"]
    result = subprocess.run(
        [sys.executable, "-P", *launch, "train", str(config)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode != 0
    assert result.stderr.count("error: training needs at least") == 1
    assert "ToldElsewhereError" not in result.stderr


def test_a_process_that_ends_ends_the_others_with_what_it_means(tmp_path: Path) -> None:
    result = _run(tmp_path / "dies", 2, "dies")
    assert result.returncode != 0
    assert "WorkerError: another process of the run is gone" in result.stderr
    assert not list(tmp_path.glob("dies.rank*"))
