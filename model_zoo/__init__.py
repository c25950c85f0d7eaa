"""The model zoo: checkpoints known by name, with where they come from and what they must hash to."""

from __future__ import annotations

from bitnet_onnx.model_zoo._cache import Progress, cache_root
from bitnet_onnx.model_zoo._catalog import get, list_models, pull, resolve, resolve_package
from bitnet_onnx.model_zoo._manifest import EmbeddedSource, HubSource, Manifest, TensorForm, WheelSource, read_manifest

__all__ = [
    "EmbeddedSource",
    "HubSource",
    "Manifest",
    "Progress",
    "TensorForm",
    "WheelSource",
    "cache_root",
    "get",
    "list_models",
    "pull",
    "read_manifest",
    "resolve",
    "resolve_package",
]
