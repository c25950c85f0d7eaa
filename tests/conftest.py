"""Fixtures of all tests: the zoo's small model, packages made from it, tiny checkpoints, the operator library."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from shared import alone, made_once
from tiny_models import TINY, write_checkpoint

from bitnet_onnx.converters import convert
from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.errors import ZooError
from bitnet_onnx.model_zoo import resolve

ZOO_NAME = "smollm2-135m-instruct"

# No test may depend on how fast the machine is.
settings.register_profile("bitnet-onnx", deadline=None)
settings.load_profile("bitnet-onnx")

# A shell's background job ignores SIGINT, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


LOG = logging.getLogger("bitnet_onnx")
QUIET = tuple(LOG.handlers), LOG.level, LOG.propagate


@pytest.fixture(autouse=True)
def _log_put_back() -> None:
    """The command line takes over the package's log, as a process of its own may; so do fixtures of a whole file."""
    handlers, level, LOG.propagate = QUIET
    LOG.handlers = [*handlers]
    LOG.setLevel(level)


@pytest.fixture(scope="session")
def zoo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF of SmolLM2-135M-Instruct; without a network the test is skipped, in CI it fails."""
    try:
        with alone(tmp_path_factory, "zoo-model"):
            return resolve(ZOO_NAME)
    except ZooError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the zoo's model is not to be had: {error}")
        pytest.skip(f"the zoo's model is not to be had: {error}")


@pytest.fixture(scope="session")
def zoo_package(zoo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default conversion of SmolLM2-135M-Instruct."""
    return made_once(tmp_path_factory, "zoo-package", lambda package: convert(zoo_model, package))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny checkpoint by its name, written once."""
    root = tmp_path_factory.mktemp("tiny")

    def get(name: str) -> Path:
        directory = root / name
        return directory if directory.exists() else write_checkpoint(directory, TINY[name])

    return get


@pytest.fixture(scope="session")
def operator_library() -> Path:
    path = library_path()
    if path is None:
        pytest.skip("the operator library is not built: no C++17 compiler when bitnet-onnx was installed")
    return path
