"""`infer --batch --ray`: the bytes of the run without Ray, whatever dies in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_nodes import Nodes, kill, wait_until

Command = Callable[..., subprocess.Popen[str]]

OPTIONS = ("--temperature", "1.2", "--seed", "5", "--max-new-tokens", "40", "--max-batch", "2", "--memory", "200MB")
LINES = 240


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many lines, with empty ones and wrong ones among them."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [json.dumps({"id": n, "prompt": f"Question {n}: ", "max_new_tokens": 10 + n % 30}) for n in range(LINES)]
    lines[3] = '{"prompt": 5}'
    lines[4] = ""
    lines[-2] = "{"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def expected(prompts: Path, converted: Path, operator_library: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of the run without Ray."""
    from bitnet_onnx.cli import main

    out = tmp_path_factory.mktemp("expected") / "answers.jsonl"
    with pytest.raises(SystemExit):
        main(["infer", str(converted), "--batch", str(prompts), "--out", str(out), *OPTIONS])
    data = out.read_bytes()
    assert data.count(b"\n") == LINES - 1
    return data


def ended(process: subprocess.Popen[str], status: int = 0) -> str:
    """What a command wrote on stderr; it writes nothing else."""
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (status, ""), err
    return err


def wait_for_answers(process: subprocess.Popen[str], out: Path, more_than: int = 0) -> None:
    def more() -> bool:
        assert process.poll() is None, process.communicate()
        return out.exists() and out.stat().st_size > more_than

    wait_until(more, 120)


def test_a_worker_and_a_node_that_die_change_no_byte(
    nodes: Nodes, command: Command, prompts: Path, expected: bytes, converted: Path, tmp_path: Path
) -> None:
    third = nodes.add()
    out = tmp_path / "answers.jsonl"
    process = command(
        "infer", converted, "--batch", prompts, "--out", out, *OPTIONS, "--ray", "--ray-address", nodes.address
    )
    wait_for_answers(process, out)
    (first, *others) = nodes.workers("MapWorker")
    assert len(others) == 2
    kill(first)
    wait_for_answers(process, out, out.stat().st_size)
    nodes.kill(third)
    done = out.read_bytes().count(b"\n")
    assert done < LINES / 2
    assert ended(process) == f"{LINES - 1} lines answered, 2 of them with an error, 0 kept from before\n"
    assert out.read_bytes() == expected
    wait_until(lambda: nodes.alive() == 2)


def test_a_driver_that_dies_is_continued(
    nodes: Nodes, command: Command, prompts: Path, expected: bytes, converted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    arguments = ("infer", converted, "--batch", prompts, "--out", out, *OPTIONS)
    process = command(*arguments, "--ray", "--ray-address", nodes.address)
    wait_for_answers(process, out)
    process.kill()
    process.communicate()
    torn = out.read_bytes()
    kept = torn.count(b"\n")
    assert 0 < kept < LINES / 2
    assert expected.startswith(torn)
    err = ended(command(*arguments, "--ray", "--ray-address", nodes.address, "--replicas", "2"))
    assert err.startswith(f"{LINES - 1 - kept} lines answered, ")
    assert err.endswith(f" {kept} kept from before\n")
    assert out.read_bytes() == expected
    # Nothing is left to do, with Ray or without.
    assert ended(command(*arguments)).startswith("0 lines answered")


def test_a_package_that_a_node_has_not(
    nodes: Nodes, command: Command, prompts: Path, converted: Path, tmp_path: Path
) -> None:
    descriptor = os.open(converted, os.O_RDONLY)
    only_here = f"/proc/self/fd/{descriptor}"
    process = command(
        *("infer", only_here, "--batch", prompts, "--out", tmp_path / "out"),
        *("--ray", "--ray-address", nodes.address),
        pass_fds=(descriptor,),
    )
    os.close(descriptor)
    (line,) = ended(process, 2).splitlines()
    assert line.startswith("error: node ")
    assert f": {only_here}: no such directory; the package must be there on every node" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Ray's own files are looked for where Linux has them")
def test_a_cluster_of_its_own_leaves_nothing(
    command: Command, prompts: Path, expected: bytes, converted: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "answers.jsonl"
    assert ended(command("infer", converted, "--batch", prompts, "--out", out, *OPTIONS, "--ray")).count("\n") == 1
    assert out.read_bytes() == expected
    assert list(Path(environment["TMPDIR"]).iterdir()) == []
    assert list(Path(environment["HOME"]).iterdir()) == []
    assert environment["TMPDIR"] not in subprocess.run(["ps", "-axo", "args="], capture_output=True, text=True).stdout
