"""A package on the command line: a path, or the name of one that comes with the installation."""

from __future__ import annotations

import os
from pathlib import Path


def package_path(value: str) -> Path:
    """The path that is meant.

    Raises:
        ZooError: it is the name of a model that has to be converted first.
    """
    if os.path.lexists(value):
        return Path(value)
    # It loads what fetches models, which those who name a path need not wait for.
    from bitnet_onnx.model_zoo import resolve_package

    return resolve_package(value)
