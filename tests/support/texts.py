"""Texts that tiny models can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

WORDS = ("hello", "world", "the", "low", "er")


def write_words(path: Path, count: int, words: Sequence[str] = WORDS) -> Path:
    """Words in a random order, the same on every machine."""
    path.write_text(" ".join(np.random.default_rng(0).choice(words, count)), encoding="utf-8")
    return path
