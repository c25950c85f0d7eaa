"""Where a session runs: the CPU, with our operator library or on the function bodies, or an Apple GPU."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bitnet_onnx.custom_ops import (
    library_facts,
    library_is_named,
    library_path,
    library_remedy,
    metal_library_path,
)
from bitnet_onnx.errors import OperatorError
from bitnet_onnx.package_format import Operators
from bitnet_onnx.runtime import _metal
from bitnet_onnx.runtime._native_errors import one_line

logger = logging.getLogger(__name__)

_VARIABLE: Final = "BITNET_ONNX_DEVICE"


@dataclass(frozen=True, slots=True)
class Device:
    """What executes the graph.

    Without `operator_library` ONNX Runtime inlines the function bodies that the package carries: the same
    model on stock operators, slower to load and to run. `metal` has `metal_library`, and leaves to the CPU what the
    GPU has no kernels for.
    """

    kind: Literal["cpu", "metal"] = "cpu"
    operator_library: Path | None = None
    metal_library: Path | None = None

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """An array that sessions on this device read and write where it is.

        Raises:
            MemoryError, BitnetOnnxError: the memory cannot be had.
        """
        if self.metal_library is None:
            return np.zeros(shape, dtype)
        return _metal.device_zeros(self.metal_library, shape, dtype)


def open_session(source: str | bytes, options: ort.SessionOptions, device: Device) -> ort.InferenceSession:
    """A session on a device; `options` learn of it, operator library included.

    Raises:
        OperatorError: a library cannot be loaded.
        Exception: ONNX Runtime refuses the graph.
    """
    if device.operator_library is not None:
        register_library(options, device.operator_library)
    if device.metal_library is None:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    _metal.add_provider(options, device.metal_library)
    # Not again without the provider: the error would only be another one.
    return ort.InferenceSession(source, options, enable_fallback=0)


def register_library(options: ort.SessionOptions, path: Path) -> None:
    """Registers the operator library with the sessions that `options` will open.

    Raises:
        OperatorError: it is for another platform or is another library, or ONNX Runtime cannot load it, with the reason
            on one line.
    """
    library_facts(path)
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:
        raise OperatorError(f"{path}: ONNX Runtime cannot load the operator library: {one_line(error)}") from None


def check_operators(path: Path, needed: int, package: Path) -> None:
    """Checks that the operator library in `path` runs the version of the operators that a package needs.

    Raises:
        OperatorError: it is too old or too new, or as `register_library`.
    """
    facts = library_facts(path)
    if not facts.oldest_operator_version <= needed <= facts.operator_version:
        raise OperatorError(
            f"{package} needs version {needed} of the operators, and {path} (bitnet_ops {facts.version}) runs "
            f"{facts.runs}: {library_remedy(path)}"
        )


@lru_cache(maxsize=1)
def auto_select_device() -> Device:
    """The fastest device of this machine: an Apple GPU, else the CPU with the operator library where one loads.

    The choice is made once per process, and the one warning of the slow way is logged once. The environment variable
    `BITNET_ONNX_DEVICE` takes it: `cpu` or `metal`.

    Raises:
        OperatorError: the variable asks for what is not there, or BITNET_ONNX_OPS_LIBRARY for what cannot be used.
    """
    wanted = os.environ.get(_VARIABLE, "")
    if wanted not in ("", "cpu", "metal"):
        raise OperatorError(f"{_VARIABLE} is {wanted!r:.40}, expected cpu or metal")
    metal = None
    if wanted == "metal" or (wanted == "" and sys.platform == "darwin"):
        metal = _metal_library(required=wanted == "metal")
    path = library_path()
    if path is None:
        reason = "the operator library is not built"
    else:
        try:
            # Tried in options that are thrown away.
            register_library(ort.SessionOptions(), path)
            return Device("cpu" if metal is None else "metal", path, metal)
        except OperatorError as error:
            if library_is_named():
                raise
            reason = str(error)
    logger.warning(
        "%s: running on the function bodies, which is slower; install a wheel of bitnet-onnx, or reinstall "
        "from source with a C++17 compiler present, to get the library",
        reason,
    )
    return Device("cpu" if metal is None else "metal", None, metal)


def select_device(operators: Operators) -> Device:
    """As `auto_select_device` where a package has our operators; for any other ONNX Runtime is all there is."""
    return auto_select_device() if operators is Operators.BITNET else Device()


def runtime_name(operators: Operators, device: Device) -> str:
    """What executes a package on a device, in reports."""
    if operators is not Operators.BITNET:
        return f"{operators} operators"
    return "function bodies" if device.operator_library is None else "operator library"


def _metal_library(*, required: bool) -> Path | None:
    """The library of the Metal provider where it finds a device."""
    try:
        path = metal_library_path()
        if path is None:
            raise OperatorError(
                "the Metal provider is not built: install a wheel of bitnet-onnx for macOS on Apple silicon, or "
                "reinstall from source there"
            )
        _metal.find_device(path)
    except OperatorError as error:
        if required:
            raise
        logger.info("running on the CPU: %s", error)
        return None
    return path
