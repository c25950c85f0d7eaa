"""Running packages: `load(path).generate(prompt)`."""

from __future__ import annotations

from bitnet_onnx.runtime.chat import Message
from bitnet_onnx.runtime.devices import Device, auto_select_device, select_device
from bitnet_onnx.runtime.generation import Generation, Timings, Token, TokenStream
from bitnet_onnx.runtime.generator import Model, load
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.sampling import SamplingParameters

__all__ = [
    "Device",
    "Generation",
    "Message",
    "Model",
    "PackageInfo",
    "SamplingParameters",
    "Timings",
    "Token",
    "TokenStream",
    "auto_select_device",
    "load",
    "select_device",
]
