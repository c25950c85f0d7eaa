"""Muon for ternary matrices, in steps of their grid; AdamW for all others."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from bitnet_onnx.training.optimizers._chunks import CHUNK, pieces
from bitnet_onnx.training.optimizers._orthogonal import Orthogonal
from bitnet_onnx.training.optimizers.adamw import AdamW
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerSettings

_FLOOR: Final = 1e-5


class TernaryMuon(AdamW):
    """Moves each ternary matrix by its momentum made orthogonal, as far as its own scale says.

    A code changes where the sum of many steps crosses a threshold, `m / 2` from zero, `m = max(mean|w|, 1e-5)`: what a
    step does depends on its size in units of `m`, which differs between matrices and changes over a run. So for
    a ternary matrix `[N, K]`

        b += (1 - b1) (g - b)
        w = w (1 - rate decay) - rate pace m sqrt(max(N, K)) orthogonal(b1 b + (1 - b1) g)

    where `orthogonal(U S V^T)` is about `U V^T`, by five Newton-Schulz iterations, and the root makes the mean square
    of a step's entries 1 before `rate pace m` (Jordan et al., "Muon", 2024). Tensors that are not ternary move as with
    AdamW. The iterations take about `20 N K min(N, K)` multiplications: little beside the gradient of a batch of many
    more tokens than `min(N, K)`.

    Args:
        store: what is moved.
        settings: those of AdamW, and pace.
        ternary: names of the matrices that are rounded to ternary codes.
        threads: None is a few, and all cores for matrix products.
        chunk: floats of a piece.
    """

    def __init__(
        self,
        store: ParameterStore,
        settings: OptimizerSettings,
        ternary: frozenset[str],
        *,
        threads: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self._orthogonal = Orthogonal(threads or 0)
        # In the order of the store, so that no result depends on that of a set.
        self._matrices = [name for name in store if name in ternary]
        places = [store.place(name) for name in self._matrices]
        edges = {edge for place in places for edge in (place.start, place.stop)}
        super().__init__(store, settings, threads=threads, chunk=chunk, cuts=edges)
        taken = {
            piece.start + place.start for place in places for piece in pieces(place.stop - place.start, chunk=chunk)
        }
        self._pieces = [piece for piece in self._pieces if piece.start not in taken]

    def step(self, rate: float, scale: float = 1.0) -> None:
        """See `Optimizer`."""
        super().step(rate, scale)
        for name in self._matrices:
            self._move_matrix(name, rate, scale)

    def _move_matrix(self, name: str, rate: float, scale: float) -> None:
        values = self._store.value(name)
        momentum = self._first[self._store.place(name)].reshape(values.shape)
        gradient = self._store.gradient(name) * np.float32(scale)
        one, decay = self._settings.betas[0], self._settings.weight_decay
        size = max(float(np.abs(values).mean(dtype=np.float64)), _FLOOR)
        gradient -= momentum
        gradient *= 1 - one
        momentum += gradient
        # b1 b + (1 - b1) g, where b is the new momentum: its last change once more, as Nesterov's.
        gradient *= one
        gradient += momentum
        change = self._orthogonal(gradient)
        change *= rate * self._settings.pace * size * math.sqrt(max(values.shape))
        if decay:
            values *= 1 - rate * decay
        values -= change
