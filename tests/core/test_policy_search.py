"""The search for precisions against trying all."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_onnx.errors import InputError
from bitnet_onnx.policy_search import Choice, fewest_bits, least_loss

CHOICES = st.builds(Choice, st.integers(0, 40), st.floats(0, 10).map(lambda x: round(x, 3)))
UNITS = st.lists(st.lists(CHOICES, min_size=1, max_size=4), min_size=1, max_size=5)


def _sums(units: list[list[Choice]], chosen: tuple[int, ...]) -> tuple[int, float]:
    taken = [unit[index] for unit, index in zip(units, chosen, strict=True)]
    return sum(choice.bits for choice in taken), sum(choice.loss for choice in taken)


def _all(units: list[list[Choice]]) -> list[tuple[int, float]]:
    return [_sums(units, chosen) for chosen in itertools.product(*(range(len(unit)) for unit in units))]


@given(UNITS, st.integers(0, 200))
def test_the_least_loss_is_that_of_trying_all(units: list[list[Choice]], bits: int) -> None:
    fitting = [loss for size, loss in _all(units) if size <= bits]
    if not fitting:
        with pytest.raises(InputError, match="too few"):
            least_loss(units, bits)
        return
    size, loss = _sums(units, least_loss(units, bits))
    assert size <= bits
    assert math.isclose(loss, min(fitting), abs_tol=1e-9)


@given(UNITS, st.floats(0, 40))
def test_the_fewest_bits_are_those_of_trying_all(units: list[list[Choice]], most: float) -> None:
    fitting = [size for size, loss in _all(units) if loss <= most - 1e-9]
    if not fitting:
        if not [size for size, loss in _all(units) if loss <= most + 1e-9]:
            with pytest.raises(InputError, match="cannot be reached"):
                fewest_bits(units, most)
        return
    size, loss = _sums(units, fewest_bits(units, most))
    assert loss <= most + 1e-9
    assert size <= min(fitting)


def test_large_sizes_are_found_to_a_part_in_thousands() -> None:
    units = [[Choice(10**8 * bits + index, 4.0**-bits * (index + 1)) for bits in (2, 4, 6, 8)] for index in range(100)]
    size, loss = _sums(units, least_loss(units, 4.5e10))
    assert 4.4e10 < size <= 4.5e10
    assert loss < sum(unit[1].loss for unit in units)


def test_a_budget_of_the_smallest_choices_is_enough_however_sizes_are_rounded() -> None:
    units = [[Choice(10**6 + 1, 1.0), Choice(10**9 + 7, 0.0)] for _ in range(50)]
    assert least_loss(units, 50 * (10**6 + 1)) == (0,) * 50


def test_a_unit_without_choices_is_refused() -> None:
    with pytest.raises(InputError, match="without a choice"):
        least_loss([[]], 1)
