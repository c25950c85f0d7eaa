"""Ternary and low-bit decoders as ONNX packages: convert, inspect, run."""

from __future__ import annotations

__version__ = "0.1.0"
