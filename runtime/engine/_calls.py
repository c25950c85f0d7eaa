"""Which slots share a call of the graph, when some rows of a step have more tokens than others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bitnet_onnx.runtime._speculation import CALL


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls take contiguous slots, of which all rows have as many positions.

    Args:
        can_rest: whether a slot may be in a call with so many positions, some or all of which are no part of its text.
        positions: most positions of a call.
    """

    can_rest: Callable[[int, int], bool]
    positions: int

    def split(self, read: Mapping[int, int]) -> list[tuple[list[int], int]]:
        """Slots, by the tokens to be read into them, in groups, and the positions of a row in each group.

        All are one group, or those with one token are apart, whichever is cheaper.
        """
        slots = sorted(read)
        width = max(read.values())
        single = [slot for slot in slots if read[slot] == 1]
        drafted = [slot for slot in slots if read[slot] > 1]
        groups = [group for group in ((single, 1), (drafted, width)) if group[0]]
        if len(groups) == 2 and all(self.can_rest(slot, width) for slot in single):
            apart = sum(self._cost(part, columns) for part, columns in groups)
            return groups if apart < self._cost(slots, width) else [(slots, width)]
        return groups

    def ranges(self, slots: list[int], width: int) -> Iterator[tuple[int, int]]:
        """Ranges of slots that hold all of `slots`, ascending, and few others."""
        first = stop = slots[0]
        for slot in slots:
            gap = range(stop, slot)
            apart = len(gap) * width > CALL or not all(self.can_rest(other, width) for other in gap)
            if apart or (slot + 1 - first) * width > self.positions:
                yield first, stop
                first = slot
            stop = slot + 1
        yield first, stop

    def _cost(self, slots: list[int], width: int) -> int:
        """In positions."""
        return sum(CALL + (stop - first) * width for first, stop in self.ranges(slots, width))
