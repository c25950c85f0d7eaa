"""Interleaving and ratios."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from bitnet_onnx.benchmarks.results import Comparison
from bitnet_onnx.benchmarks.timing import Samples, interleave, timed


def test_every_candidate_runs_once_a_round_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def candidate(name: str) -> Callable[[], float]:
        def run() -> float:
            calls.append(name)
            return float(len(calls))

        return run

    samples = interleave({name: candidate(name) for name in "abc"}, rounds=2, warm_up=1)
    assert "".join(calls) == "abcabcabc"
    assert samples["a"].seconds == (4.0, 7.0)
    assert samples["c"].seconds == (6.0, 9.0)


def test_a_ratio_is_that_of_neighbours_and_not_of_medians() -> None:
    # The machine is ten times slower from the third round on; within each round the peer takes twice as long.
    ours, peer = Samples((1.0, 1.0, 10.0, 10.0, 10.0)), Samples((2.0, 2.0, 20.0, 20.0, 20.0))
    assert peer.ratio_to(ours) == 2
    # One disturbed run does not move it.
    assert Samples((2.0, 200.0, 20.0, 20.0, 20.0)).ratio_to(ours) == 2


def test_samples() -> None:
    samples = Samples((3.0, 1.0, 2.0))
    assert samples.scaled(10).seconds == (30.0, 10.0, 20.0)
    assert samples.as_dict() == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": [3.0, 1.0, 2.0]}


def test_timed_calls_once_and_measures_it() -> None:
    called = []
    assert timed(lambda: (called.append(1), time.sleep(0.01)))() >= 0.01
    assert called == [1]


def test_a_comparison() -> None:
    candidates = {"bitnet": Samples((2.0, 2.0)), "peer": Samples((5.0, 5.0))}
    comparison = Comparison("decode", 2, candidates, tokens=4, multiply_adds=100, limit_s=1.5)
    assert comparison.ratio("peer") == 2.5
    assert comparison.share_of_limit == 0.75
    peer = comparison.as_dict()["candidates"]["peer"]  # type: ignore[index]
    assert (peer["tokens_per_s"], peer["multiply_adds_per_s"]) == (0.8, 20)
    bare = Comparison("load", 1, candidates)
    assert bare.share_of_limit is None
    assert bare.as_dict()["candidates"]["peer"]["tokens_per_s"] is None  # type: ignore[index]
    with pytest.raises(KeyError):
        bare.ratio("nobody")
