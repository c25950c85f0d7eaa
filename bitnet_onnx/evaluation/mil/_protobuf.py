"""The message classes of Core ML's format, out of coremltools, without what importing that package does."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from bitnet_onnx.errors import InputError

_NAME: Final = "_bitnet_onnx_coreml_messages"


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
