"""The last minute of a server, out of snapshots: rates, and what was measured since."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise

from bitnet_onnx.runtime.engine.metrics import EngineMetrics, Histogram
from bitnet_onnx.runtime.server.snapshot import ServerSnapshot

#: What is looked back on.
WINDOW_S = 60.0
#: A rate "now" is that of so many seconds, or it would jump with every prompt.
_NOW_S = 3.0


class History:
    """Snapshots of the last minute, the newest last; at least one must be added before anything is asked.

    Attributes:
        updated_at: when the newest was taken, on the clock of `add`.
    """

    def __init__(self) -> None:
        self._points: deque[tuple[float, ServerSnapshot]] = deque()
        self.updated_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._points)

    @property
    def last(self) -> ServerSnapshot:
        """The newest."""
        return self._points[-1][1]

    def add(self, at: float, snapshot: ServerSnapshot) -> None:
        """Takes a snapshot of the moment `at`, in seconds; after a restart of the server it is the first again."""
        if self._points:
            before, now = self.last.engine, snapshot.engine
            if now.submitted < before.submitted or now.generated_tokens < before.generated_tokens:
                self._points.clear()
        self._points.append((at, snapshot))
        self.updated_at = at
        while len(self._points) > 2 and self._points[1][0] <= at - WINDOW_S:
            self._points.popleft()

    def rate(self, counter: Callable[[EngineMetrics], int]) -> float:
        """How fast a counter rises now, in 1/s."""
        end, last = self._points[-1]
        start, first = next((p for p in self._points if p[0] >= end - _NOW_S), self._points[-1])
        if start == end and len(self._points) > 1:
            start, first = self._points[-2]
        return (counter(last.engine) - counter(first.engine)) / (end - start) if end > start else 0.0

    def gained(self, counter: Callable[[EngineMetrics], int]) -> int:
        """What a counter has risen by within the window."""
        return counter(self.last.engine) - counter(self._points[0][1].engine)

    def durations(self, histogram: Callable[[EngineMetrics], Histogram]) -> Histogram:
        """What was measured within the window."""
        return histogram(self.last.engine).since(histogram(self._points[0][1].engine))

    def rates(self, counter: Callable[[EngineMetrics], int], count: int) -> list[float]:
        """The rates of a counter in `count` equal parts of the window, the newest last; 0 before the first snapshot."""
        steps = [
            (start, end, max(counter(after.engine) - counter(before.engine), 0) / (end - start))
            for (start, before), (end, after) in pairwise(self._points)
            if end > start
        ]
        return self._parts(steps, count)

    def levels(self, gauge: Callable[[EngineMetrics], int], count: int) -> list[float]:
        """The values of a gauge in the same parts."""
        steps = [(start, end, float(gauge(after.engine))) for (start, _), (end, after) in pairwise(self._points)]
        return self._parts(steps, count)

    def _parts(self, steps: list[tuple[float, float, float]], count: int) -> list[float]:
        """Means of a step function `(from, to, value)` over equal parts of the window."""
        size = WINDOW_S / count
        begin = self._points[-1][0] - WINDOW_S
        sums = [0.0] * count
        for start, end, value in steps:
            first = max(int((start - begin) / size), 0)
            for part in range(first, min(int((end - begin) / size) + 1, count)):
                overlap = min(end, begin + (part + 1) * size) - max(start, begin + part * size)
                sums[part] += value * max(overlap, 0.0)
        return [value / size for value in sums]
