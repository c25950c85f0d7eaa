"""Reading checkpoints: whatever the file format, every checkpoint looks like a Hugging Face directory."""

from __future__ import annotations

from bitnet_onnx.converters.checkpoints._base import Checkpoint, TensorInfo, TokenizerFiles
from bitnet_onnx.converters.checkpoints._bitnet_packed import BITNET
from bitnet_onnx.converters.checkpoints._open import open_checkpoint

__all__ = ["BITNET", "Checkpoint", "TensorInfo", "TokenizerFiles", "open_checkpoint"]
