"""Ternary and low-bit decoders as ONNX packages: convert, inspect, run.

The verbs are loaded on first use, so that importing the core costs no more than numpy.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Read when onnxruntime is imported, which then writes a session file and may report how it is used. Whoever wants that
# sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from bitnet_onnx.api import (
        CoreMLOptions,
        GgufOptions,
        Quality,
        QualityOptions,
        SafetensorsOptions,
        WindowRule,
        convert,
        convert_coreml,
        evaluate,
        export,
    )
    from bitnet_onnx.inspection import Inspection, inspect
    from bitnet_onnx.runtime import Generation, Model, SamplingParameters, load

__all__ = [
    "CoreMLOptions",
    "Generation",
    "GgufOptions",
    "Inspection",
    "Model",
    "Quality",
    "QualityOptions",
    "SafetensorsOptions",
    "SamplingParameters",
    "WindowRule",
    "__version__",
    "convert",
    "convert_coreml",
    "evaluate",
    "export",
    "inspect",
    "load",
]

#: Where each name comes from: running a package must not import what converts checkpoints.
_MODULES = {
    "CoreMLOptions": "api",
    "Generation": "runtime",
    "GgufOptions": "api",
    "Inspection": "inspection",
    "Model": "runtime",
    "Quality": "api",
    "QualityOptions": "api",
    "SafetensorsOptions": "api",
    "SamplingParameters": "runtime",
    "WindowRule": "api",
    "convert": "api",
    "convert_coreml": "api",
    "evaluate": "api",
    "export": "api",
    "inspect": "inspection",
    "load": "runtime",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
