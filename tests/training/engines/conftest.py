"""The environment of onnxruntime-training, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.training.engines.environment import prepare


@pytest.fixture(scope="session")
def training_python() -> Path:
    """The environment's Python; skipped where it cannot be had: another platform or Python, no network."""
    try:
        return prepare()
    except BitnetOnnxError as error:
        pytest.skip(f"onnxruntime-training is not to be had: {error}")
