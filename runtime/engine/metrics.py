"""What the engine counts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from bitnet_onnx.runtime.engine.request import EndReason
from bitnet_onnx.runtime.memory import MemoryReport

#: Seconds until something begins: close enough together to read a median out of them.
_WAIT_BOUNDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75),
    *(1.0, 1.5, 2.5, 3.5, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0),
)
#: Seconds between two tokens: a step of a small model takes a few milliseconds.
_GAP_BOUNDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations in seconds, as Prometheus counts them.

    Attributes:
        bounds: upper ends of the buckets; one more bucket has no end.
        counts: in each bucket, `len(bounds) + 1` of them, not cumulative.
        total: sum of all durations.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """Number of durations."""
        return sum(self.counts)

    def since(self, earlier: Histogram) -> Histogram:
        """What came after an earlier reading; all of it where that was of other counts, as after a restart."""
        if self.bounds != earlier.bounds or any(a < b for a, b in zip(self.counts, earlier.counts, strict=True)):
            return self
        counts = tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True))
        return Histogram(self.bounds, counts, self.total - earlier.total)

    def quantile(self, share: float) -> float | None:
        """Seconds below which a share of the durations lies, evenly spread within its bucket; None: there are none.

        What lies beyond the last bound is taken for that bound.
        """
        rank = share * self.count
        below, lower = 0, 0.0
        for count, upper in zip(self.counts, self.bounds, strict=False):
            if count and below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below, lower = below + count, upper
        return lower if self.count else None


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """The engine at one moment; counters run from its beginning.

    Attributes:
        healthy: whether it takes requests and answers them.
        queue_length: requests that wait for a slot, preempted ones included.
        running: requests that hold a slot.
        reading: of these, those whose prompt is being read.
        max_batch: slots.
        submitted: requests taken.
        refused: requests refused because the queue was full.
        finished: answers ended, by reason.
        prefilled_tokens: tokens of prompts computed, those read again after a preemption included.
        prompt_tokens: tokens of prompts that were looked up in the prompt cache, of which it held `cached_tokens`.
        cached_tokens: tokens of prompts taken from the prompt cache.
        generated_tokens: tokens of answers.
        decode_steps: steps that generated for all running answers at once.
        decode_rows: answers in them, summed: `decode_rows / decode_steps` is the mean batch.
        drafted_tokens: tokens that were guessed and read.
        accepted_tokens: of these, those that were right.
        preemptions: answers that gave their memory to others, to be read again later.
        queued: from submission to the first slot.
        first_token: from submission to the first token.
        token_gap: between two tokens of one answer.
        prompt_cache_bytes: size of the prompt cache.
        memory: report of the pool.
    """

    healthy: bool
    queue_length: int
    running: int
    reading: int
    max_batch: int
    submitted: int
    refused: int
    finished: Mapping[EndReason, int]
    prefilled_tokens: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    decode_steps: int
    decode_rows: int
    drafted_tokens: int
    accepted_tokens: int
    preemptions: int
    queued: Histogram
    first_token: Histogram
    token_gap: Histogram
    prompt_cache_bytes: int
    memory: MemoryReport

    @property
    def occupancy(self) -> float:
        """Share of the slots that are in use, 0 to 1."""
        return self.running / self.max_batch


class Durations:
    """A histogram that is being counted.

    Args:
        bounds: upper ends of its buckets, in seconds.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def snapshot(self) -> Histogram:
        """What was counted."""
        return Histogram(self._bounds, tuple(self._counts), self._total)


@dataclass(slots=True)
class Counters:
    """The running counts; each is written by one thread, and read by any."""

    submitted: int = 0
    refused: int = 0
    finished: dict[EndReason, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "context": 0, "cancelled": 0, "deadline": 0, "error": 0}
    )
    prefilled_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    decode_steps: int = 0
    decode_rows: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    queued: Durations = field(default_factory=lambda: Durations(_WAIT_BOUNDS))
    first_token: Durations = field(default_factory=lambda: Durations(_WAIT_BOUNDS))
    token_gap: Durations = field(default_factory=lambda: Durations(_GAP_BOUNDS))
