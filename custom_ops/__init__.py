"""Where the compiled libraries lie: operators, and the execution provider for Apple GPUs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bitnet_onnx.custom_ops._library import LibraryFacts, read_facts
from bitnet_onnx.errors import OperatorError

_VARIABLE = "BITNET_ONNX_OPS_LIBRARY"
_METAL_VARIABLE = "BITNET_ONNX_METAL_LIBRARY"
_STEM = "bitnet_ops"
_SDK = "sdk"


def library_path() -> Path | None:
    """The operator library, or None where it was not built.

    The environment variable `BITNET_ONNX_OPS_LIBRARY` names another copy.

    Raises:
        OperatorError: the variable names a file that does not exist.
    """
    return _find(_VARIABLE, _STEM)


def library_name() -> str:
    """The file name of the operator library on this system."""
    return _file_name(_STEM)


def required_library() -> Path:
    """The operator library.

    Raises:
        OperatorError: it was not built, or as `library_path`.
    """
    path = library_path()
    if path is None:
        raise OperatorError(
            "the operator library is not built; packages run on their function bodies, only slower: "
            "reinstall with a C++17 compiler present to get it"
        )
    return path


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
    candidates = (Path(folder, _file_name(stem)) for folder in __path__)
    return next((path for path in candidates if path.is_file()), None)


def _file_name(stem: str) -> str:
    return {"win32": f"{stem}.dll", "darwin": f"lib{stem}.dylib"}.get(sys.platform, f"lib{stem}.so")


def library_is_named() -> bool:
    """The user chose the operator library: what is wrong with it is an error, and not a reason to go without."""
    return bool(os.environ.get(_VARIABLE))


def library_facts(path: Path) -> LibraryFacts:
    """What the operator library in `path` says of itself.

    Raises:
        OperatorError: it is for another platform, does not load, or is not our operator library.
    """
    return read_facts(path, library_remedy(path))


def library_remedy(path: Path) -> str:
    """What can be done about a library that is of no use, as the end of a message."""
    if os.environ.get(_VARIABLE) == str(path):
        return f"{_VARIABLE} names it: correct or unset the variable"
    return "reinstall bitnet-onnx"


def sdk_files() -> tuple[Path, ...]:
    """What applications need beside the library: licence, C header, CMake package, pkg-config file.

    Raises:
        OperatorError: they are not there.
    """
    for folder in __path__:
        files = sorted(entry for entry in Path(folder, _SDK).glob("*") if entry.is_file())
        if files:
            return tuple(files)
    raise OperatorError("the header and the licence of the operator library are not installed: reinstall bitnet-onnx")


def library_version() -> str | None:
    """The version of the operator library and its instruction set, as `0.1.0 (avx2)`, or None without one.

    Raises:
        OperatorError: as `library_facts`.
    """
    path = library_path()
    return None if path is None else library_facts(path).build
