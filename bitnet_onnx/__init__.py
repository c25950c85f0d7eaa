"""Ternary and low-bit decoders as ONNX packages: convert, inspect, run.

The three verbs are loaded on first use, so that importing the core costs no more than numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bitnet_onnx.api import Generation, Inspection, Model, SamplingParameters, convert, inspect, load

__all__ = ["Generation", "Inspection", "Model", "SamplingParameters", "__version__", "convert", "inspect", "load"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("bitnet_onnx.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
