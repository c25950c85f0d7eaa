"""Where a session runs: today the CPU, with our operator library or on the function bodies."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from bitnet_onnx.custom_ops import library_path
from bitnet_onnx.errors import OperatorError
from bitnet_onnx.runtime._native_errors import one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Device:
    """What executes the graph.

    Without `operator_library` ONNX Runtime inlines the function bodies that the package carries: the same
    model on stock operators, slower to load and to run.
    """

    kind: Literal["cpu"] = "cpu"
    operator_library: Path | None = None


def register_library(options: ort.SessionOptions, path: Path) -> None:
    """Registers the operator library with the sessions that `options` will open.

    Raises:
        OperatorError: ONNX Runtime cannot load it, with the reason on one line.
    """
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:
        raise OperatorError(f"{path}: ONNX Runtime cannot load the operator library: {one_line(error)}") from None


@lru_cache(maxsize=1)
def auto_select_device() -> Device:
    """The fastest device of this machine: the CPU with the operator library where one loads.

    The choice is made once per process, and the one warning of the slow way is logged once.
    """
    path = library_path()
    if path is None:
        reason = "the operator library is not built"
    else:
        try:
            # Tried in options that are thrown away.
            register_library(ort.SessionOptions(), path)
            return Device(operator_library=path)
        except OperatorError as error:
            reason = str(error)
    logger.warning(
        "%s: running on the function bodies, which is slower; install a wheel of bitnet-onnx, or reinstall "
        "from source with a C++17 compiler present, to get the library",
        reason,
    )
    return Device()
