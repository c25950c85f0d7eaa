"""Interleaved timing: every candidate once a round, so that a busy machine is busy for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

#: Runs once and returns the seconds that count.
Candidate = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds of one candidate, one for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.seconds)

    def ratio_to(self, reference: Samples) -> float:
        """How many times as long as the reference this takes: the median of the rounds' own ratios.

        The two runs of a round are neighbours in time, so that a slow spell of the machine cancels out.
        """
        return median(mine / its for mine, its in zip(self.seconds, reference.seconds, strict=True))

    def scaled(self, factor: float) -> Samples:
        """The same for a part or a multiple of the work."""
        return Samples(tuple(value * factor for value in self.seconds))

    def as_dict(self) -> dict[str, float | list[float]]:
        """All figures, for JSON."""
        return {
            "median": self.median,
            "min": min(self.seconds),
            "max": max(self.seconds),
            "rounds": list(self.seconds),
        }


def timed(function: Callable[[], object]) -> Candidate:
    """A candidate out of something that is to be called once."""

    def run() -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    return run


def interleave(candidates: Mapping[str, Candidate], *, rounds: int, warm_up: int = 1) -> dict[str, Samples]:
    """Run A B C A B C ...

    Args:
        candidates: what is compared, by name.
        rounds: how often each runs and counts.
        warm_up: rounds before that, which do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-warm_up, rounds):
        for name, run in candidates.items():
            value = run()
            if turn >= 0:
                seconds[name].append(value)
    return {name: Samples(tuple(values)) for name, values in seconds.items()}
