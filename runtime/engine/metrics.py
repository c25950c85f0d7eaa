"""What the engine counts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from bitnet_onnx.runtime.engine.request import EndReason
from bitnet_onnx.runtime.memory import MemoryReport

_FIRST_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


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
        cached_tokens: tokens of prompts taken from the prompt cache.
        generated_tokens: tokens of answers.
        decode_steps: steps that generated for all running answers at once.
        decode_rows: answers in them, summed: `decode_rows / decode_steps` is the mean batch.
        drafted_tokens: tokens that were guessed and read.
        accepted_tokens: of these, those that were right.
        preemptions: answers that gave their memory to others, to be read again later.
        first_token: from submission to the first token.
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
    cached_tokens: int
    generated_tokens: int
    decode_steps: int
    decode_rows: int
    drafted_tokens: int
    accepted_tokens: int
    preemptions: int
    first_token: Histogram
    prompt_cache_bytes: int
    memory: MemoryReport

    @property
    def occupancy(self) -> float:
        """Share of the slots that are in use, 0 to 1."""
        return self.running / self.max_batch


@dataclass(slots=True)
class Counters:
    """The running counts; each is written by one thread, and read by any."""

    submitted: int = 0
    refused: int = 0
    finished: dict[EndReason, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "context": 0, "cancelled": 0, "deadline": 0, "error": 0}
    )
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    decode_steps: int = 0
    decode_rows: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    first_token_counts: list[int] = field(default_factory=lambda: [0] * (len(_FIRST_TOKEN_BOUNDS) + 1))
    first_token_total: float = 0.0

    def first_token(self, seconds: float) -> None:
        """Counts one first token."""
        self.first_token_counts[bisect_left(_FIRST_TOKEN_BOUNDS, seconds)] += 1
        self.first_token_total += seconds

    def first_token_histogram(self) -> Histogram:
        """What was counted."""
        return Histogram(_FIRST_TOKEN_BOUNDS, tuple(self.first_token_counts), self.first_token_total)
