"""Gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.optimizers._chunks import CHUNK, Piece, Workers, pieces
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerSettings


class Sgd:
    """`b = momentum b + (g + decay w)`, `w -= rate b`; only the store's decayed part has weight decay.

    Args:
        store: what is moved.
        settings: momentum and weight decay.
        threads: None is a few.
        chunk: floats of a piece.
    """

    def __init__(
        self, store: ParameterStore, settings: OptimizerSettings, *, threads: int | None = None, chunk: int = CHUNK
    ) -> None:
        self.steps = 0
        self._store = store
        self._settings = settings
        self._momentum: FloatArray = np.zeros(store.size if settings.momentum else 0, np.float32)
        self._workers = Workers(threads, room=chunk)
        self._pieces = pieces(store.size, (store.decayed_size,), chunk=chunk)

    def step(self, rate: float, scale: float = 1.0) -> None:
        """See `Optimizer`."""
        self.steps += 1
        self._workers.run(lambda piece: self._move(piece, rate, scale), self._pieces)

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """See `Optimizer`."""
        return {"momentum": self._momentum} if self._settings.momentum else {}

    def close(self) -> None:
        """See `Optimizer`."""
        self._workers.close()

    def _move(self, piece: Piece, rate: float, scale: float) -> None:
        values = self._store.values[piece.slice]
        change = self._workers.scratch(0, len(values))
        np.multiply(self._store.gradients[piece.slice], scale, out=change)
        if self._settings.weight_decay and piece.start < self._store.decayed_size:
            change += np.multiply(values, self._settings.weight_decay, out=self._workers.scratch(1, len(values)))
        if self._settings.momentum:
            momentum = self._momentum[piece.slice]
            momentum *= self._settings.momentum
            momentum += change
            np.multiply(momentum, rate, out=change)
        else:
            change *= rate
        values -= change
