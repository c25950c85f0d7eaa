"""A cluster of two nodes, and the command line that runs on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import Nodes, running_nodes

from bitnet_onnx.converters import convert

Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """That of the commands: a home and a directory for files of their own, which must be empty in the end."""
    home = tmp_path_factory.mktemp("home")
    # Paths of sockets may have a hundred characters.
    temporary = tempfile.mkdtemp(prefix="bo-")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # ONNX Runtime would keep an account of itself in both.
    more = {"HOME": str(home), "TMPDIR": temporary, "ORT_DISABLE_TELEMETRY": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    yield kept | more
    shutil.rmtree(temporary)


@pytest.fixture(scope="session")
def nodes(environment: dict[str, str]) -> Iterator[Nodes]:
    if sys.platform != "linux":
        pytest.skip("Ray supports clusters of several nodes on Linux only")
    files = Path(tempfile.mkdtemp(prefix="bo-"))
    with running_nodes(files, environment) as nodes:
        yield nodes
    shutil.rmtree(files, ignore_errors=True)


def commands(environment: dict[str, str]) -> Iterator[Command]:
    """Starts `bitnet-onnx` with arguments; what still runs in the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **more: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bitnet_onnx", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **more,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


command = pytest.fixture(commands, name="command")
start_command = pytest.fixture(commands, scope="module", name="start_command")


@pytest.fixture(scope="session")
def converted(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package for the operator library, whose bits depend on nothing around."""
    package = tmp_path_factory.mktemp("ray") / "package"
    convert(tiny_checkpoint("untied_gqa"), package)
    return package
