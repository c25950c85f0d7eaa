"""Where the compiled operator library lies."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from bitnet_onnx.errors import OperatorError

_VARIABLE = "BITNET_ONNX_OPS_LIBRARY"
_NAMES = {"win32": "bitnet_ops.dll", "darwin": "libbitnet_ops.dylib"}


def library_path() -> Path | None:
    """The operator library, or None where it was not built.

    The environment variable `BITNET_ONNX_OPS_LIBRARY` names another copy.

    Raises:
        OperatorError: the variable names a file that does not exist.
    """
    named = os.environ.get(_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise OperatorError(f"{_VARIABLE} is '{named}', which is not a file: correct or unset it")
        return Path(named)
    # An editable install spreads the package over two folders: sources here, the library in site-packages.
    name = _NAMES.get(sys.platform, "libbitnet_ops.so")
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
