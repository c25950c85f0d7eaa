from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_onnx.errors import BitnetOnnxError, InputError
from bitnet_onnx.runtime.sampling import Sampler, SamplingParameters


def logits_of(*probabilities: float) -> npt.NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities)).astype(np.float32)


def drawn(parameters: SamplingParameters, logits: npt.NDArray[np.float32], count: int = 400) -> set[int]:
    sampler = Sampler(parameters)
    return {sampler.sample(logits) for _ in range(count)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1"),
        ({"frequency_penalty": math.inf}, "frequency_penalty is inf"),
        ({"logit_bias": ((3, 100.5),)}, "logit_bias of token 3 is 100.5"),
        ({"logit_bias": ((-1, 1.0),)}, "a token of logit_bias is -1"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": 1.0}, "min_p is 1.0"),
        ({"min_p": -0.5}, "min_p is -0.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"seed": -1}, "seed is -1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"min_p": True}, "min_p is True"),
        ({"stop": "word"}, "stop is"),
        ({"stop": 7}, "stop is"),
        ({"stop": ("",)}, "stop string"),
        ({"stop": (7,)}, "stop string"),
        ({"stop": ("a" * 257,)}, "stop string"),
        ({"stop": ("a",) * 17}, "at most 16"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        SamplingParameters(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20))
def test_greedy_is_the_first_of_the_largest(values: list[float]) -> None:
    assert Sampler(SamplingParameters()).sample(np.array(values, np.float32)) == values.index(max(values))


@settings(deadline=None)
@given(st.integers(0, 2**63), st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=20))
def test_a_seed_makes_the_draws_repeatable(seed: int, values: list[float]) -> None:
    logits = np.array(values, np.float32)
    first, second = (Sampler(SamplingParameters(temperature=1.0, seed=seed)) for _ in range(2))
    assert [first.sample(logits) for _ in range(8)] == [second.sample(logits) for _ in range(8)]


def test_frequencies_are_the_probabilities() -> None:
    sampler = Sampler(SamplingParameters(temperature=1.0, seed=1))
    logits = logits_of(0.5, 0.3, 0.2)
    counts = np.bincount([sampler.sample(logits) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    sampler = Sampler(SamplingParameters(temperature=2.0, seed=1))
    logits = logits_of(0.8, 0.2)
    share = np.mean([sampler.sample(logits) for _ in range(4000)])
    assert share == pytest.approx(math.sqrt(0.2) / (math.sqrt(0.2) + math.sqrt(0.8)), abs=0.03)
    assert drawn(SamplingParameters(temperature=1e-300, seed=1), logits) == {0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {2}),
        ({"top_p": 0.51}, {1, 2}),
        ({"top_p": 0.75}, {1, 2}),
        ({"min_p": 0.3}, {1, 2}),
        ({"min_p": 0.9}, {2}),
        # After top_k the two best are 2/3 and 1/3: top_p counts those, not the original halves and quarters.
        ({"top_k": 2, "top_p": 0.6}, {2}),
    ],
)
def test_filters_keep_what_they_promise(changes: dict[str, Any], expected: set[int]) -> None:
    logits = logits_of(0.125, 0.25, 0.5, 0.125)
    assert drawn(SamplingParameters(temperature=1.0, seed=3, **changes), logits) == expected


def test_temperature_comes_before_the_filters() -> None:
    logits = logits_of(0.6, 0.4)
    cold = SamplingParameters(temperature=0.1, top_p=0.9, seed=0)
    assert drawn(cold, logits) == {0}
    assert drawn(SamplingParameters(temperature=1.0, top_p=0.9, seed=0), logits) == {0, 1}


def test_top_k_resolves_ties_by_the_lowest_id() -> None:
    logits = np.zeros(10, np.float32)
    assert drawn(SamplingParameters(temperature=1.0, top_k=3, seed=0), logits) == {0, 1, 2}


def test_excluded_tokens_are_never_drawn() -> None:
    assert drawn(SamplingParameters(temperature=5.0, seed=0), logits_of(0.5, 0.0, 0.5)) == {0, 2}


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    sampler = Sampler(SamplingParameters(repetition_penalty=2.0))
    logits = np.array([3.0, 2.0, -1.0], np.float32)
    assert sampler.sample(logits) == 0
    sampler.observe([0])
    assert sampler.sample(logits) == 1
    negative = np.array([-1.0, -1.5], np.float32)
    assert sampler.sample(negative) == 1
    assert logits[0] == 3.0


@pytest.mark.parametrize("values", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unusable_logits_are_an_error(values: list[float], temperature: float) -> None:
    sampler = Sampler(SamplingParameters(temperature=temperature))
    with pytest.raises(BitnetOnnxError, match="largest logit is"):
        sampler.sample(np.array(values, np.float32))


def test_a_bias_is_added_to_the_logit() -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    assert Sampler(SamplingParameters(logit_bias=((0, 2.5),))).sample(logits) == 0
    assert Sampler(SamplingParameters(logit_bias=((0, 1.5),))).sample(logits) == 2
    # A vocabulary that is padded less than the one the id came from.
    assert Sampler(SamplingParameters(logit_bias=((7, 9.0),))).sample(logits) == 2


def test_presence_counts_once_and_frequency_each_time() -> None:
    logits = np.array([2.0, 1.5, 0.0], np.float32)
    presence = Sampler(SamplingParameters(presence_penalty=1.0))
    assert [presence.sample(logits) for _ in range(4)] == [0, 1, 0, 0]
    frequency = Sampler(SamplingParameters(frequency_penalty=1.0))
    assert [frequency.sample(logits) for _ in range(5)] == [0, 1, 0, 1, 0]
    encouraged = Sampler(SamplingParameters(presence_penalty=-2.0))
    encouraged.observe([2])  # a prompt does not count
    assert [encouraged.sample(logits) for _ in range(3)] == [0, 0, 0]
