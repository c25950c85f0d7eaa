"""What an export wrote, and what it cost."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bitnet_onnx.decoder import DecoderSpec

#: Called after each tensor: how many weights are written, how many there are, and the name of the last tensor.
Written = Callable[[int, int, str], None]


class Target(enum.StrEnum):
    """Formats that a model can be written in, besides our own package."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class Export:
    """What an export wrote.

    Attributes:
        path: the directory or file.
        target: its format.
        spec: the decoder.
        layout: how the matrices of the blocks are stored, in words.
        files: size in bytes of each file.
        losses: what differs from the source, one line each; empty where nothing does.
    """

    path: Path
    target: Target
    spec: DecoderSpec
    layout: str
    files: dict[str, int]
    losses: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())
