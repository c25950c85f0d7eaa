"""Where the compiled libraries lie: operators, and the execution provider for Apple GPUs."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from bitnet_onnx.errors import OperatorError

_VARIABLE = "BITNET_ONNX_OPS_LIBRARY"
_METAL_VARIABLE = "BITNET_ONNX_METAL_LIBRARY"


def library_path() -> Path | None:
    """The operator library, or None where it was not built.

    The environment variable `BITNET_ONNX_OPS_LIBRARY` names another copy.

    Raises:
        OperatorError: the variable names a file that does not exist.
    """
    return _find(_VARIABLE, "bitnet_ops")


def metal_library_path() -> Path | None:
    """The library of the execution provider `BitNetMetal`, or None where it was not built.

    The environment variable `BITNET_ONNX_METAL_LIBRARY` names another copy.

    Raises:
        OperatorError: the variable names a file that does not exist.
    """
    return _find(_METAL_VARIABLE, "bitnet_metal")


def _find(variable: str, stem: str) -> Path | None:
    named = os.environ.get(variable)
    if named:
        if not Path(named).is_file():
            raise OperatorError(f"{variable} is '{named}', which is not a file: correct or unset it")
        return Path(named)
    # An editable install spreads the package over two folders: sources here, the library in site-packages.
    name = {"win32": f"{stem}.dll", "darwin": f"lib{stem}.dylib"}.get(sys.platform, f"lib{stem}.so")
    candidates = (Path(folder, name) for folder in __path__)
    return next((path for path in candidates if path.is_file()), None)


def library_version() -> str | None:
    """The version of the operator library and its instruction set, as `0.1.0 (avx2)`, or None without one.

    Raises:
        OperatorError: the library is there but cannot be loaded.
    """
    path = library_path()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
        texts = []
        for function in (library.BitnetOpsVersion, library.BitnetOpsIsa):
            function.restype = ctypes.c_char_p
            texts.append(function().decode())
    except (OSError, AttributeError) as error:
        raise OperatorError(f"{path} cannot be used: {error}; reinstall bitnet-onnx") from error
    return f"{texts[0]} ({texts[1] or 'unusable BITNET_ONNX_ISA'})"
