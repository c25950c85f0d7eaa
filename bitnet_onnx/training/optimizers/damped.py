"""AdamW for ternary weights that holds back those which flip to and fro."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.training.optimizers._chunks import BLOCK, CHUNK, Piece, pieces
from bitnet_onnx.training.optimizers.adamw import AdamW
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerSettings

#: Steps after which a flip is forgotten; the memory of a weight is one signed byte.
MEMORY: Final = 127
_FLOOR: Final = 1e-5


class DampedAdamW(AdamW):
    """AdamW, where a weight that changed its code not long ago is held back from changing it the other way.

    Gradients of a straight-through estimator push a weight over a threshold and back again for as long as neither code
    is right by itself, and each flip is noise for all other weights (Nagel et al., "Overcoming Oscillations in
    Quantization-Aware Training", 2022). Here every ternary weight remembers its last flip, as a signed number that
    goes from `+-127` to 0, one a step. A step that would take it over a threshold against that sign is multiplied by
    `1 - damping * |memory| / 127`; any other is AdamW's. So a weight that keeps its direction is never slowed down, and
    one that returns needs a push that lasts.

    Thresholds are `+-m / 2`, with `m = max(mean|w|, 1e-5)` of each tensor before the step.

    Args:
        store: what is moved.
        settings: those of AdamW, and damping.
        ternary: names of the tensors that are rounded to ternary codes.
        threads: None is a few.
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
        self._places = sorted((store.place(name) for name in ternary), key=lambda place: place.start)
        edges = [edge for place in self._places for edge in (place.start, place.stop)]
        super().__init__(store, settings, threads=threads, chunk=chunk, cuts=edges)
        self._memory = np.zeros(sum(place.stop - place.start for place in self._places), np.int8)
        offset = 0
        #: By the beginning of a piece: which tensor it is of, and how far its memory is from it.
        self._tensors: dict[int, tuple[int, int]] = {}
        self._blocks: list[list[Piece]] = []
        for index, place in enumerate(self._places):
            for piece in pieces(place.stop - place.start, chunk=chunk):
                self._tensors[place.start + piece.start] = (index, offset - place.start)
            blocks = pieces(place.stop - place.start, chunk=BLOCK)
            self._blocks.append([Piece(place.start + one.start, place.start + one.stop) for one in blocks])
            offset += place.stop - place.start
        self._thresholds = [0.0] * len(self._places)

    def step(self, rate: float, scale: float = 1.0) -> None:
        """See `Optimizer`."""
        self._thresholds = self._measured()
        super().step(rate, scale)

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """See `Optimizer`."""
        return {**super().state(), "flips": self._memory}

    def _measured(self) -> list[float]:
        """Half the mean magnitude of each tensor."""
        sums: dict[int, float] = {}

        def add(block: Piece) -> None:
            sums[block.start] = float(np.abs(self._store.values[block.slice]).sum(dtype=np.float64))

        self._workers.run(add, [block for blocks in self._blocks for block in blocks])
        return [
            max(math.fsum(sums[block.start] for block in blocks) / max(place.stop - place.start, 1), _FLOOR) / 2
            for place, blocks in zip(self._places, self._blocks, strict=True)
        ]

    def _move(self, piece: Piece, rate: float, scale: float) -> None:
        found = self._tensors.get(piece.start)
        if found is None:
            super()._move(piece, rate, scale)
            return
        tensor, shift = found
        threshold = np.float32(self._thresholds[tensor])
        values = self._store.values[piece.slice]
        change = self._change(piece, rate, scale)
        memory = self._memory[piece.start + shift : piece.stop + shift]
        before = self._workers.scratch(1, len(values))
        before[:] = values
        old = codes(values, threshold)
        self._apply(values, change, self._kept(piece, rate))
        # Few weights are about to flip: all that follows is for them alone.
        moved = np.flatnonzero(codes(values, threshold) != old)
        direction = np.sign(values[moved] - before[moved])
        against = np.maximum(-direction * memory[moved], 0)
        factor = 1 - np.float32(self._settings.damping / MEMORY) * against
        held = np.flatnonzero(against)
        at = moved[held]
        values[at] = before[at] + factor[held] * (values[at] - before[at])
        memory -= np.sign(memory)
        flipped = codes(values[moved], threshold) != old[moved]
        memory[moved[flipped]] = direction[flipped].astype(np.int8) * np.int8(MEMORY)


def codes(values: FloatArray, threshold: np.float32) -> npt.NDArray[np.int8]:
    """Ternary codes: -1, 0 or 1."""
    above: npt.NDArray[np.int8] = (values > threshold).view(np.int8) - (values < -threshold).view(np.int8)
    return above
