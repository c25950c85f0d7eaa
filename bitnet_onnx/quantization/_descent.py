"""Codes and steps improved one at a time, each to the best that it can be while all others stay."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from bitnet_onnx.quantization._factor import Moment, Order, Wide

#: Columns whose gradient is kept up to date one by one; the others wait for a product of matrices.
_BLOCK: Final = 128


@dataclass(slots=True)
class Rounded:
    """Some rows of a matrix with their codes, columns first.

    Attributes:
        weight: `[K, n]`.
        codes: `[K, n]`.
        step: `[groups, n]`, never zero.
        members: `[K]`, the group of each column.
        low: smallest code.
        high: largest code.
    """

    weight: Wide
    codes: Wide
    step: Wide
    members: Order
    low: int
    high: int

    def error(self, columns: slice) -> Wide:
        """What is missing in some columns."""
        return self.weight[columns] - self.codes[columns] * self.step[self.members[columns]]

    def loss(self, moments: list[Moment]) -> Wide:
        """`e M e^T` of each row, `[n]`."""
        total = np.zeros(self.weight.shape[1])
        for moment in moments:
            error = self.error(moment.columns)
            total += moment.gain * np.einsum("kn,kn->n", error, moment.matrix @ error)
        return total


class Descent:
    """Coordinate descent on the error weighted by the second moment; no step makes it worse.

    Args:
        rounded: where to begin; it is changed.
        moments: that cover its columns.
    """

    def __init__(self, rounded: Rounded, moments: list[Moment]) -> None:
        self._rounded = rounded
        self._moments = moments
        # Half the negative gradient, `M e^T`.
        self._slope = np.empty_like(rounded.weight)
        for moment in moments:
            np.matmul(moment.matrix, rounded.error(moment.columns), out=self._slope[moment.columns])
        self._blocks = [_pieces(moment.columns) for moment in moments]
        inside = {
            group for pieces in self._blocks for piece in pieces for group in _whole_groups(rounded.members, piece)
        }
        self._wide = sorted(set(rounded.members.tolist()) - inside)

    def sweep(self, *, codes: bool = True, steps: bool = True) -> int:
        """Visit every column and every group once.

        Returns:
            How many codes changed.
        """
        changed = 0
        for moment, pieces in zip(self._moments, self._blocks, strict=True):
            for piece in pieces:
                changed += self._visit(moment, piece, codes, steps)
        if steps:
            for group in self._wide:
                self._rescale(group)
        return changed

    def _visit(self, moment: Moment, piece: slice, codes: bool, steps: bool) -> int:
        rounded, slope = self._rounded, self._slope[piece]
        members = rounded.members[piece]
        begin = moment.columns.start
        local = slice(piece.start - begin, piece.stop - begin)
        matrix = np.ascontiguousarray(moment.matrix[local, local])
        part = rounded.codes[piece]
        before = part * rounded.step[members]
        changed = _recode(part, slope, matrix, rounded, members) if codes else 0
        if steps:
            for group in _whole_groups(rounded.members, piece):
                where = np.flatnonzero(members == group)
                own = slice(int(where[0]), int(where[-1]) + 1)
                product = matrix[:, own] @ part[own]
                more = _better_step(part[own], slope[own], product[own], rounded.step[group])
                rounded.step[group] += more
                slope -= product * more
        if not steps and not changed:
            return 0
        delta = part * rounded.step[members] - before
        whole = self._slope[moment.columns]
        for rest in (slice(0, local.start), slice(local.stop, len(whole))):
            if rest.stop > rest.start:
                whole[rest] -= moment.matrix[rest, local] @ delta
        return changed

    def _rescale(self, group: int) -> None:
        """The step of a group that does not lie in one piece."""
        rounded = self._rounded
        own = np.flatnonzero(rounded.members == group)
        first, last = int(own[0]), int(own[-1]) + 1
        numerator, denominator = np.zeros(rounded.codes.shape[1]), np.zeros(rounded.codes.shape[1])
        products: list[tuple[slice, Wide]] = []
        for moment in self._moments:
            begin = moment.columns.start
            start, stop = max(first, begin), min(last, moment.columns.stop)
            if start >= stop:
                continue
            codes = rounded.codes[start:stop]
            product = moment.matrix[:, start - begin : stop - begin] @ codes
            products.append((moment.columns, product))
            numerator += moment.gain * np.einsum("kn,kn->n", codes, self._slope[start:stop])
            denominator += moment.gain * np.einsum("kn,kn->n", codes, product[start - begin : stop - begin])
        more = _quotient(numerator, denominator, rounded.step[group])
        rounded.step[group] += more
        for columns, product in products:
            product *= more
            self._slope[columns] -= product


def _recode(part: Wide, slope: Wide, matrix: Wide, rounded: Rounded, members: Order) -> int:
    changed = 0
    inverse = 1 / rounded.step
    diagonal = matrix.diagonal()
    code = np.empty(part.shape[1])
    for k in np.flatnonzero(diagonal > 0):
        group = members[k]
        np.multiply(slope[k], inverse[group], out=code)
        code /= diagonal[k]
        code += part[k]
        np.rint(code, out=code)
        np.clip(code, rounded.low, rounded.high, out=code)
        code -= part[k]
        moved = code.nonzero()[0]
        if not moved.size:
            continue
        changed += moved.size
        part[k] += code
        if moved.size * 4 < code.size:
            slope[:, moved] -= matrix[:, k, None] * (code[moved] * rounded.step[group, moved])
        else:
            slope -= matrix[:, k, None] * (code * rounded.step[group])
    return changed


def _better_step(codes: Wide, slope: Wide, product: Wide, step: Wide) -> Wide:
    return _quotient(np.einsum("kn,kn->n", codes, slope), np.einsum("kn,kn->n", codes, product), step)


def _quotient(numerator: Wide, denominator: Wide, step: Wide) -> Wide:
    """What to add to the step; nothing where that would make it vanish."""
    more = np.divide(numerator, denominator, out=np.zeros_like(step), where=denominator > 0)
    return np.where(np.abs(step + more) > 1e-3 * np.abs(step), more, 0)


def _pieces(columns: slice) -> list[slice]:
    """The columns of a block, cut at multiples that groups are cut at too."""
    cuts = [columns.start, *range((columns.start // _BLOCK + 1) * _BLOCK, columns.stop, _BLOCK), columns.stop]
    return [slice(start, stop) for start, stop in pairwise(cuts) if start < stop]


def _whole_groups(members: Order, piece: slice) -> list[int]:
    """Groups all of whose columns lie in the piece."""
    first, last = members[piece.start], members[piece.stop - 1]
    cut_before = piece.start > 0 and members[piece.start - 1] == first
    cut_after = piece.stop < len(members) and members[piece.stop] == last
    return [
        int(group)
        for group in range(first, last + 1)
        if not (group == first and cut_before) and not (group == last and cut_after)
    ]
