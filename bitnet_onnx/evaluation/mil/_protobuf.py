"""The message classes of Core ML's format, out of coremltools, without what importing that package does."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from bitnet_onnx.errors import InputError, PackageError
from bitnet_onnx.evaluation.mil._wire import check_size

_NAME: Final = "_bitnet_onnx_coreml_messages"


def parse(data: bytes, path: str) -> Any:
    """The message `Model` that is serialized in a file.

    Raises:
        InputError: coremltools is not installed.
        PackageError: it is no such message, or too large a one.
    """
    kind = model_message()
    check_size(data, kind, path)
    model = kind()
    try:
        model.ParseFromString(data)
    except importlib.import_module("google.protobuf.message").DecodeError as error:
        raise PackageError(f"{path}: not a Core ML model ({error!s:.200})") from error
    return model


@lru_cache(maxsize=1)
def model_message() -> Any:
    """The class `Model`.

    `import coremltools` takes seconds, 300 MB and prints of libraries that Linux does not have. Its generated modules
    need nothing but one another: they are loaded here as a package of their own, and protobuf gives the same classes
    to whoever imports coremltools itself.

    Raises:
        InputError: coremltools is not installed.
    """
    spec = importlib.util.find_spec("coremltools")
    if spec is None or spec.origin is None:
        raise InputError("Core ML packages need coremltools: pip install 'bitnet-onnx[coreml]'")
    package = ModuleType(_NAME)
    package.__path__ = [str(Path(spec.origin).parent / "proto")]
    sys.modules[_NAME] = package
    return importlib.import_module(f"{_NAME}.Model_pb2").Model
