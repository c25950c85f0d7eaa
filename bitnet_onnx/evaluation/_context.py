"""The context length to open the source of a package with."""

from __future__ import annotations

from pathlib import Path

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.families import Config, find
from bitnet_onnx.package_format import MANIFEST
from bitnet_onnx.runtime import PackageInfo


def context_to_open(source: Path, layout: str | None, info: PackageInfo) -> int | None:
    """That of the package where the source has another one, since rotary scaling may depend on it; None: its own."""
    wanted = info.architecture.context_length
    if (source / MANIFEST).exists():
        return wanted
    with open_checkpoint(source, i2s_layout=layout) as checkpoint:
        config = Config(checkpoint.config)
        own = find(config).spec(config).context_length
    return None if own == wanted else wanted
