"""AdamW for ternary weights whose flips are damped."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from bitnet_onnx.training.optimizers._chunks import BLOCK, CHUNK, Piece, pieces
from bitnet_onnx.training.optimizers.adamw import AdamW
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerSettings

_FLOOR: Final = 1e-5


class DampedAdamW(AdamW):
    """AdamW that also pulls ternary weights toward the values which they are rounded to, the more the later.

    A straight-through gradient pushes a weight over a threshold and back for as long as neither code is right by
    itself, and each flip is noise for all others; a penalty on the distance from the rounded value damps that (Nagel et
    al., "Overcoming Oscillations in Quantization-Aware Training", 2022). Here it is decoupled from the moments, as
    weight decay is in AdamW, so that it has the scale of AdamW's own steps: to each step is added
    `rate * damping * t / T * (q - w) / m`, where `m = max(mean|w|, 1e-5)` of the tensor and `q` is `w` rounded to
    `{-m, 0, m}`. Weights beyond `+-m` are left alone. It needs no state.

    It is for runs that are long enough to settle: in shorter ones it holds back what is still to be learned.

    Args:
        store: what is moved.
        settings: those of AdamW, and damping.
        ternary: names of the tensors that are rounded to ternary codes.
        steps: of the run, `T`.
        threads: None is a few.
        chunk: floats of a piece.
    """

    def __init__(
        self,
        store: ParameterStore,
        settings: OptimizerSettings,
        ternary: frozenset[str],
        *,
        steps: int,
        threads: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        places = sorted((store.place(name) for name in ternary), key=lambda place: place.start)
        edges = [edge for place in places for edge in (place.start, place.stop)]
        super().__init__(store, settings, threads=threads, chunk=chunk, cuts=edges)
        self._total = steps
        #: By the beginning of a piece: the index of its tensor.
        self._tensors: dict[int, int] = {}
        self._blocks: list[list[Piece]] = []
        for index, place in enumerate(places):
            size = place.stop - place.start
            self._tensors |= {place.start + piece.start: index for piece in pieces(size, chunk=chunk)}
            self._blocks.append(
                [Piece(place.start + one.start, place.start + one.stop) for one in pieces(size, chunk=BLOCK)]
            )
        self._scales = [0.0] * len(places)

    def step(self, rate: float, scale: float = 1.0) -> None:
        """See `Optimizer`."""
        self._scales = self._measured()
        super().step(rate, scale)

    def _measured(self) -> list[float]:
        """`m` of each tensor."""
        sums: dict[int, float] = {}

        def add(block: Piece) -> None:
            sums[block.start] = float(np.abs(self._store.values[block.slice]).sum(dtype=np.float64))

        self._workers.run(add, [block for blocks in self._blocks for block in blocks])
        return [
            max(math.fsum(sums[one.start] for one in blocks) / (blocks[-1].stop - blocks[0].start), _FLOOR)
            for blocks in self._blocks
        ]

    def _move(self, piece: Piece, rate: float, scale: float) -> None:
        change = self._change(piece, rate, scale)
        values = self._store.values[piece.slice]
        tensor = self._tensors.get(piece.start)
        if tensor is not None:
            share = rate * self._settings.damping * min(1.0, self.steps / self._total)
            place = np.multiply(values, 1 / self._scales[tensor], out=self._workers.scratch(1, len(values)))
            # Beyond the outer codes there is nothing to be pulled to.
            np.clip(place, -1, 1, out=place)
            pull = np.rint(place, out=self._workers.scratch(2, len(values)))
            pull -= place
            pull *= share
            change -= pull
        self._apply(values, change, self._kept(piece, rate))
