"""Reading checkpoints: whatever the file format, every checkpoint looks like a Hugging Face directory."""

from __future__ import annotations

from bitnet_onnx.converters.checkpoints._base import Checkpoint, TensorInfo, TokenizerFiles
from bitnet_onnx.converters.checkpoints._open import open_checkpoint

__all__ = ["Checkpoint", "TensorInfo", "TokenizerFiles", "open_checkpoint"]
