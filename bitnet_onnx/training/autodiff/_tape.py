"""Gradients of a graph's values while they are gathered, from the loss upward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx_ir as ir

from bitnet_onnx.training.autodiff._emitter import Emitter, dims

#: Axis, start, stop, gradient.
_Piece = tuple[int, int, int, ir.Value]
_END: Final = np.iinfo(np.int32).max


@dataclass(slots=True)
class _Parts:
    """What consumers of one value gave.

    Attributes:
        full: of the value's shape.
        broadcast: that broadcast to it.
        pieces: of ranges of it.
        rows: `(indices, updates)` to be added to rows along axis 0, as ScatterND takes them.
    """

    full: list[ir.Value] = field(default_factory=list)
    broadcast: list[ir.Value] = field(default_factory=list)
    pieces: list[_Piece] = field(default_factory=list)
    rows: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)


class Tape(Emitter):
    """What the rules of operators read gradients from and give gradients to.

    Args:
        graph: that is differentiated.
        active: values on a path from a parameter to the loss.
    """

    def __init__(self, graph: ir.Graph, active: frozenset[ir.Value]) -> None:
        super().__init__(graph, "backward")
        self.active: Final = active
        self._parts: dict[ir.Value, _Parts] = {}

    def wants(self, value: ir.Value | None) -> bool:
        """Whether anything comes of a value's gradient."""
        return value is not None and value in self.active

    def give(self, value: ir.Value | None, gradient: ir.Value, *, full: bool = True) -> None:
        """Add to a value's gradient, if anything comes of it; not `full`: it broadcasts to the value's shape."""
        if value is not None and value in self.active:
            parts = self._of(value)
            (parts.full if full else parts.broadcast).append(gradient)

    def give_piece(self, value: ir.Value, axis: int, start: int, stop: int, gradient: ir.Value) -> None:
        """Add to the gradient of the range `start` to `stop` of a value's axis, whose length is static."""
        if value in self.active:
            self._of(value).pieces.append((axis, start, stop, gradient))

    def give_rows(self, value: ir.Value, indices: ir.Value, updates: ir.Value) -> None:
        """Add `updates` to rows of a value's gradient: `indices` int64 `[..., 1]`, updates `[..., *row]`."""
        if value in self.active:
            self._of(value).rows.append((indices, updates))

    def has_gradient(self, value: ir.Value) -> bool:
        """Whether any consumer gave something."""
        return value in self._parts

    def gradient(self, value: ir.Value) -> ir.Value:
        """A value's gradient, of its shape; zeros where nothing was given."""
        gradient, full = self.loose(value)
        if full:
            return gradient
        gradient = self.op("Expand", gradient, self.shape(value))
        self._parts[value] = _Parts([gradient])
        return gradient

    def loose(self, value: ir.Value) -> tuple[ir.Value, bool]:
        """A value's gradient, and whether it has its shape already or broadcasts to it."""
        parts = self._of(value)
        total = [*parts.full, *(self._joined(value, group) for group in _disjoint(parts.pieces))]
        if parts.rows and not total:
            total.append(self.zeros(value))
        full = bool(total)
        total += parts.broadcast
        if not total:
            total.append(self.scalar(value, 0.0))
        gradient = total[0]
        for other in total[1:]:
            gradient = self.op("Add", gradient, other)
        for indices, updates in parts.rows:
            gradient = self.op("ScatterND", gradient, indices, updates, attributes={"reduction": "add"})
        self._parts[value] = _Parts([gradient]) if full else _Parts(broadcast=[gradient])
        return gradient, full

    def _of(self, value: ir.Value) -> _Parts:
        return self._parts.setdefault(value, _Parts())

    def _joined(self, value: ir.Value, pieces: list[_Piece]) -> ir.Value:
        """Ranges of one axis put together, with zeros where none is."""
        axis = pieces[0][0]
        parts: list[ir.Value] = []
        at = 0
        for _, start, stop, gradient in pieces:
            if start > at:
                parts.append(self._gap(value, axis, start - at))
            parts.append(gradient)
            at = stop
        end = (dims(value) or ())[axis]
        if isinstance(end, int) and end > at:
            parts.append(self._gap(value, axis, end - at))
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, attributes={"axis": axis})

    def _gap(self, value: ir.Value, axis: int, length: int) -> ir.Value:
        """Zeros of a value's shape but for one axis."""
        shape = self.shape(value)
        parts = [self.ints(length)]
        if axis:
            parts.insert(0, self.op("Slice", shape, self.ints(0), self.ints(axis)))
        if axis + 1 < len(dims(value) or ()):
            parts.append(self.op("Slice", shape, self.ints(axis + 1), self.ints(_END)))
        return self.op("Expand", self.scalar(value, 0.0), self.op("Concat", *parts, attributes={"axis": 0}))


def _disjoint(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Pieces in groups that can be laid side by side, each in order."""
    groups: list[list[_Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece[:3]):
        for group in groups:
            if group[-1][0] == piece[0] and group[-1][2] <= piece[1]:
                group.append(piece)
                break
        else:
            groups.append([piece])
    return groups
