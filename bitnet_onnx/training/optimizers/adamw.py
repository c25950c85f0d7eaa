"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.optimizers._chunks import CHUNK, Piece, Workers, pieces
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerSettings


class AdamW:
    """`m += (1 - b1)(g - m)`, `v += (1 - b2)(g^2 - v)`, `w = w (1 - rate decay) - rate m' / (sqrt(v') + epsilon)`.

    `m'` and `v'` are the moments over `1 - b^t`. Only the store's decayed part has weight decay.

    Args:
        store: what is moved.
        settings: betas, epsilon and weight decay.
        threads: None is a few.
        chunk: floats of a piece.
        cuts: places in the store that no piece crosses.
    """

    def __init__(
        self,
        store: ParameterStore,
        settings: OptimizerSettings,
        *,
        threads: int | None = None,
        chunk: int = CHUNK,
        cuts: Iterable[int] = (),
    ) -> None:
        self.steps = 0
        self._store = store
        self._settings = settings
        self._first: FloatArray = np.zeros(store.size, np.float32)
        self._second: FloatArray = np.zeros(store.size, np.float32)
        self._workers = Workers(threads, room=chunk)
        self._pieces = pieces(store.size, (store.decayed_size, *cuts), chunk=chunk)

    def step(self, rate: float, scale: float = 1.0) -> None:
        """See `Optimizer`."""
        self.steps += 1
        self._workers.run(lambda piece: self._move(piece, rate, scale), self._pieces)

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """See `Optimizer`."""
        return {"first_moment": self._first, "second_moment": self._second}

    def close(self) -> None:
        """See `Optimizer`."""
        self._workers.close()

    def _move(self, piece: Piece, rate: float, scale: float) -> None:
        self._apply(self._store.values[piece.slice], self._change(piece, rate, scale), self._kept(piece, rate))

    def _apply(self, values: FloatArray, change: FloatArray, kept: float) -> None:
        if kept != 1:
            values *= kept
        values -= change

    def _kept(self, piece: Piece, rate: float) -> float:
        """The share of a value that weight decay leaves."""
        decay = self._settings.weight_decay if piece.start < self._store.decayed_size else 0.0
        return 1 - rate * decay

    def _change(self, piece: Piece, rate: float, scale: float) -> FloatArray:
        """Update the moments of a piece, and return what is to be taken from its values."""
        one, two = self._settings.betas
        first, second = self._first[piece.slice], self._second[piece.slice]
        gradient = self._store.gradients[piece.slice]
        change = self._workers.scratch(0, len(gradient))
        if scale != 1:
            # Before it is squared: the square of a gradient that needs clipping may be beyond float32.
            gradient = np.multiply(gradient, scale, out=self._workers.scratch(1, len(gradient)))
        np.subtract(gradient, first, out=change)
        change *= 1 - one
        first += change
        np.multiply(gradient, gradient, out=change)
        change -= second
        change *= 1 - two
        second += change
        # Both corrections in one factor, and epsilon with that of the second: two passes less.
        root = math.sqrt(1 - two**self.steps)
        np.sqrt(second, out=change)
        change += self._settings.epsilon * root
        np.divide(first, change, out=change)
        change *= rate * root / (1 - one**self.steps)
        return change
