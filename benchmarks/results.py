"""What every benchmark gives: comparisons of candidates, and where, for JSON, tables and plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bitnet_onnx.benchmarks import machine
from bitnet_onnx.benchmarks.timing import Samples
from bitnet_onnx.errors import InputError

#: Our own candidate, which all ratios refer to.
OURS = "bitnet"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """One question put to all candidates in the same rounds.

    Attributes:
        case: what was run, as `decode body`.
        threads: threads of each candidate.
        candidates: samples by name, ours among them.
        tokens: tokens that one run handles, to make a rate of its time; 0 where there is none.
        multiply_adds: products of weights and activations in one run, for the same; 0 where there is none.
        limit_s: seconds that the machine needs at the least, where that is known.
    """

    case: str
    threads: int
    candidates: Mapping[str, Samples]
    tokens: int = 0
    multiply_adds: int = 0
    limit_s: float | None = None

    def ratio(self, name: str) -> float:
        """How many times as long as ours a candidate takes."""
        return self.candidates[name].ratio_to(self.candidates[OURS])

    @property
    def share_of_limit(self) -> float | None:
        """The least possible time as a part of ours."""
        return None if self.limit_s is None else self.limit_s / self.candidates[OURS].median

    def as_dict(self) -> dict[str, object]:
        """All figures, for JSON."""
        return {
            "case": self.case,
            "threads": self.threads,
            "tokens": self.tokens,
            "limit_s": self.limit_s,
            "share_of_limit": self.share_of_limit,
            "candidates": {
                name: {
                    "seconds": samples.as_dict(),
                    "tokens_per_s": self.tokens / samples.median if self.tokens else None,
                    "multiply_adds_per_s": self.multiply_adds / samples.median if self.multiply_adds else None,
                    "ratio_to_ours": self.ratio(name),
                }
                for name, samples in self.candidates.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one benchmark.

    Attributes:
        benchmark: `kernel`, `model` or `shape`.
        settings: what was asked for.
        comparisons: the answers.
        facts: figures that are not times of candidates, for JSON.
        notes: what a reader must know before believing them, one sentence each.
    """

    benchmark: str
    settings: Mapping[str, object]
    comparisons: tuple[Comparison, ...]
    facts: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Everything, with the machine and the time of day."""
        return {
            "format_version": FORMAT_VERSION,
            "benchmark": self.benchmark,
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine.describe(),
            "settings": dict(self.settings),
            "notes": list(self.notes),
            **self.facts,
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
        }

    def write(self, path: Path) -> None:
        """Write the JSON.

        Raises:
            InputError: the file cannot be written.
        """
        text = json.dumps(self.as_dict(), indent=2) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
