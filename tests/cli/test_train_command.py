"""`bitnet-onnx train`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_config

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.config_file import read_config

Run = Callable[..., Any]


def test_a_run_says_what_it_will_do_and_what_came_out(run: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=4)
    result = run("train", config)
    assert result.status == 0, result.err
    assert "memory: " in result.err
    assert "step 4/4: validation loss" in result.err
    first, second = result.out.splitlines()
    assert first.startswith("step 4 of 4; perplexity ")
    assert second == str(tmp_path / "run" / "model")
    fields = json.loads(run("train", config, "--resume", "--json").out)
    assert fields["end"] == "finished"
    assert fields["model"] == second


def test_check_states_the_plan_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    result = run("train", config, "--check")
    assert result.status == 0, result.err
    assert "4 sequences a step, 4 at once; engine onnxruntime" in result.out
    assert not (tmp_path / "run").exists()
    fields = json.loads(run("train", config, "--check", "--json").out)
    assert fields["memory"]["total"] == sum(value for name, value in fields["memory"].items() if name != "total")
    assert fields["ternary"] == 2 * (32 * 32 * 2 + 16 * 32 * 2 + 3 * 32 * 64)


def test_options_stand_over_the_file_and_are_checked_with_it(run: Run, refused: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    result = run("train", config, "--output", tmp_path / "other", "--steps", "3", "--seed", "4", "--json")
    assert result.status == 0, result.err
    fields = json.loads(result.out)
    assert (fields["directory"], fields["steps"]) == (str(tmp_path / "other"), 3)
    assert "optimizer.warmup is 2: it must be below loop.steps, 2" in refused("train", config, "--steps", "2")


def test_the_example_is_a_configuration(run: Run, tmp_path: Path) -> None:
    text = run("train", "--example").out
    (tmp_path / "texts.txt").write_text("some text")
    (tmp_path / "run.toml").write_text(text)
    assert read_config(tmp_path / "run.toml").model.sub_norms
    commented = text.partition("# [quantization]")
    (tmp_path / "run.toml").write_text(commented[0] + "".join(commented[1:]).replace("# ", "").replace("#", ""))
    with pytest.raises(InputError, match=r"losses\.distillation is given: it needs losses\.teacher"):
        read_config(tmp_path / "run.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch = 4", "batch = 1000000", "loop.batch is 1000000: the training texts give "),
        ("length = 32", "length = 65", "data.length is 65: expected at most 64, the model's context length"),
        ("vocab_size = 288", "vocab_size = 100", "model.architecture: vocab_size is 100, expected 258 to "),
        ('"llama"', '"lama"', "model.architecture: model_type 'lama' is not supported; did you mean 'llama'?"),
        ("attention_heads = 2", "attention_heads = 3", "model.architecture: num_attention_heads 3 does not divide"),
        ("holdout = 0.1", "holdout = 0.0002", "give no validation window of 32"),
    ],
)
def test_what_does_not_fit_is_refused_by_check_and_run(
    run: Run, refused: Any, tmp_path: Path, old: str, new: str, message: str
) -> None:
    config = write_config(tmp_path)
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    assert message in refused("train", config, "--check")
    assert not (tmp_path / "run").exists()
    result = run("train", config)
    assert (result.status, result.out) == (2, "")
    assert message in result.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "missing argument 'CONFIG.toml'"),
        (("run.toml", "--resume", "--fresh"), "contradict each other"),
        (("none.toml",), "none.toml"),
    ],
)
def test_what_cannot_be_is_refused(refused: Any, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused("train", *arguments)


@pytest.mark.skipif(os.name == "nt", reason="signals of another process are POSIX")
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=3000)
    # What is due every few steps takes longer than the steps.
    config.write_text(re.sub(r"(?m)^(\w+_every) = .*", r"\1 = 0", config.read_text()))
    log = tmp_path / "run" / "log.jsonl"
    command = [sys.executable, "-P", "-m", "bitnet_onnx", "train", str(config)]
    for number, least in ((signal.SIGINT, 5), (signal.SIGTERM, 40)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                ends = time.monotonic() + 60
                while not log.exists() or log.read_bytes().count(b'"kind": "step"') < least:
                    assert time.monotonic() < ends
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.02)
                process.send_signal(number)
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 128 + number, err
        assert "saved; the same command goes on from there" in out
    steps = [line["step"] for line in map(json.loads, log.read_text().splitlines()) if line["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
