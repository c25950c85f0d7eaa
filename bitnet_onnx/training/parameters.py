"""Trained tensors and their gradients, each in one block of memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from bitnet_onnx.quantized import FloatArray

#: Floats: tensors begin at cache lines.
_ALIGNMENT: Final = 16


class ParameterStore:
    """Trained tensors by name, as views of one flat array; those with weight decay come first.

    Args:
        shapes: of all tensors.
        decayed: names of those with weight decay.
        path: a file to hold both blocks, which another process may map too; None keeps them in this process.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], *, decayed: frozenset[str] = frozenset(), path: Path | None = None
    ) -> None:
        self.shapes: Final = dict(shapes)
        self.decayed: Final = decayed
        self.path: Final = path
        self._slices: dict[str, slice] = {}
        #: Floats at the beginning of both blocks that have weight decay.
        self.decayed_size: Final = self._lay(name for name in shapes if name in decayed)
        self.size: Final = self._lay(name for name in shapes if name not in decayed)
        if path is None:
            block = np.zeros((2, self.size), np.float32)
        else:
            block = np.memmap(path, np.float32, "w+" if not path.exists() else "r+", shape=(2, self.size))
        #: All values, float32 `[size]`; what lies between two tensors is zero.
        self.values: Final[FloatArray] = block[0]
        #: Their gradients, float32 `[size]`.
        self.gradients: Final[FloatArray] = block[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def place(self, name: str) -> slice:
        """Where a tensor lies in `values` and in `gradients`."""
        return self._slices[name]

    def value(self, name: str) -> FloatArray:
        """A tensor as a view that can be written to."""
        return self.values[self._slices[name]].reshape(self.shapes[name])

    def gradient(self, name: str) -> FloatArray:
        """A tensor's gradient as a view that can be written to."""
        return self.gradients[self._slices[name]].reshape(self.shapes[name])

    def _lay(self, names: Iterable[str]) -> int:
        """Give each tensor its place behind those that have one, and return where the next would begin."""
        offset = max((place.stop for place in self._slices.values()), default=0)
        offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
        for name in names:
            count = math.prod(self.shapes[name])
            self._slices[name] = slice(offset, offset + count)
            offset += -(-count // _ALIGNMENT) * _ALIGNMENT
        return offset
